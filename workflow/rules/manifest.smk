# Which batches there are, and at which revision each export asked for is.
#
# Needs: the backend.
# Makes: resources/manifest.json, and beside it a revision or problem file for each export.
#
# fetch_manifest writes these files itself, atomically and only where they change; the checkpoint
# has no code and only declares the manifest. Snakemake deletes a job's declared outputs before it
# runs and after it fails: this way a backend that is down costs nothing that is there.

if SETTINGS.refresh:

    rule fetch_manifest:
        input:
            request=manifest_request,
        output:
            temp("resources/.staging/manifest.done"),
        log:
            "logs/manifest.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            results=HERE / RESULTS,
            named=named_exports,
            selection=asks_for_selection,
        message:
            "Fetching the manifest"
        script:
            "../scripts/fetch_manifest.py"

else:

    rule keep_manifest:
        input:
            request=manifest_request,
        output:
            temp("resources/.staging/manifest.done"),
        log:
            "logs/manifest.log",
        localrule: True
        conda:
            "../../environment.yml"
        message:
            "Working with the last manifest (refresh=false)"
        shell:
            "echo 'kept the last manifest (refresh=false)' | tee {log} > {output}"


checkpoint manifest:
    input:
        request=manifest_request,
        fetched="resources/.staging/manifest.done",
    output:
        manifest_path(),
