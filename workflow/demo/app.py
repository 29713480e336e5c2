"""The Auto Labeler's HTTP API over a demo database, and apart from it a reviewer's edits."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .database import BatchNotFoundError, NothingToExportError, TrackNotFoundError, connect
from .edits import EditError, apply_edit
from .reads import StatusFilter, export_tracks, list_batches, list_tracks
from .sample import create_sample

ROOT_PATH = "/dataset-curation/auto-labeler-labeler/api"


def create_app(database: Path) -> FastAPI:
    """Make the demo backend.

    Args:
        database: A demo database; a missing one is made with the sample data.

    Raises:
        NotADatabaseError: The file exists and is something else.
    """
    create_sample(database)
    app = FastAPI(title="Auto Labeler, demo")
    app.add_middleware(_RootPath)
    app.include_router(_backend_api(database))
    app.include_router(_demo_api(database))
    return app


class _RootPath:
    """Sets the root path, so that paths answer with it and without, and redirects keep it.

    The server's own setting would not do: uvicorn puts it before every path.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        await self.app({**scope, "root_path": ROOT_PATH}, receive, send)


def _backend_api(database: Path) -> APIRouter:
    """Return what the real backend's API has.

    The endpoints answer responses of their own, which spares exports FastAPI's walk through
    every value. As in the real one a NaN cannot be encoded: that export answers 500.
    """
    router = APIRouter(tags=["backend"])

    @router.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.get("/batches")
    def batches() -> JSONResponse:
        with connect(database) as connection:
            return JSONResponse(list_batches(connection))

    # Before the listing, although neither path can be taken for the other: keys are paths, so
    # that `a/b` and even `a/tracks` are found.
    @router.get("/batches/{batch:path}/tracks/export")
    def export(batch: str, status_filter: StatusFilter = "complete") -> JSONResponse:
        with connect(database) as connection:
            try:
                return JSONResponse(
                    export_tracks(connection, batch, status_filter, datetime.now(UTC))
                )
            except (BatchNotFoundError, NothingToExportError) as error:
                raise HTTPException(404, str(error)) from error

    @router.get("/batches/{batch:path}/tracks")
    def tracks(batch: str) -> JSONResponse:
        with connect(database) as connection:
            try:
                return JSONResponse(list_tracks(connection, batch))
            except BatchNotFoundError as error:
                raise HTTPException(404, str(error)) from error

    return router


def _demo_api(database: Path) -> APIRouter:
    """Return the edits, which are no part of the real backend's API."""
    router = APIRouter(prefix="/demo", tags=["demo only: not part of the real API"])

    @router.post("/batches/{batch:path}/tracks/{track}/{edit}")
    def apply(
        batch: str,
        track: str,
        edit: str,
        value: str | None = None,
        user: str = "reviewer",
        note: str | None = None,
    ) -> dict[str, Any]:
        """Apply an edit; the track `-` stands for none where the edit is of the batch."""
        with connect(database) as connection:
            try:
                result = apply_edit(connection, edit, batch, track, value, user=user, note=note)
            except (BatchNotFoundError, TrackNotFoundError) as error:
                raise HTTPException(404, str(error)) from error
            except EditError as error:
                raise HTTPException(422, str(error)) from error
        return {
            "batch_key": result.batch_key,
            "track_tag": result.track_tag,
            "edit": result.edit,
            "summary": result.summary,
        }

    return router
