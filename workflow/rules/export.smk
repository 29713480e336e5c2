# One export: download, publish.
#
# Needs: the export's revision (or problem) file, the backend.
# Makes: results/<batch>_<filter>_tracks.json and results/receipts/<batch>_<filter>.json.
#
# Snakemake deletes a job's declared outputs before it runs and after it fails. So that a published
# export survives both, and a kill at any moment, the program of download_tracks replaces it in one
# step with a verified file and declares only a marker; publish_tracks declares the export but has
# no code, so Snakemake leaves its files alone. As the marker is temporary, whatever asks for
# publish_tracks (a missing file, a newer revision, --force) makes download_tracks run first.


rule download_tracks:
    input:
        # Not the problem file, though the script reads it: Snakemake remembers the inputs of failed
        # jobs, and an export that is fresh after all would be made again when the file is gone.
        revision=revision_file,
    output:
        temp("results/.staging/{export}.done"),
    log:
        "logs/download/{export}.log",
    conda:
        "../../environment.yml"
    resources:
        api_connections=1,
    params:
        python=JOBS_PYTHON,
        program=WORKFLOW / "scripts" / "download_client.py",
        resources=HERE / RESOURCES,
    message:
        "Exporting {wildcards.export}"
    shell:
        # To begin a script: takes longer than most downloads; see scripts/download_server.py.
        "{params.python:q} -I -S {params.program:q} --export {wildcards.export:q} --log {log:q}"
        " --resources {params.resources:q} --done {output:q} --revision {input.revision:q}"


rule publish_tracks:
    input:
        revision=revision_file,
        problem=problem_file,
        downloaded="results/.staging/{export}.done",
    output:
        tracks="results/{export}_tracks.json",
        receipt="results/receipts/{export}.json",
    # Ahead of further downloads, so that a finished one is recorded at once.
    priority: 1
