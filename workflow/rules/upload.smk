# A copy of the exports, their receipts and what sums them up on object storage.
#
# Needs: upload_to, the plugin for object storage (make setup-s3).
# Makes: <upload_to>/<name>, for each of these files under results/.
#
# Snakemake removes the object before the upload that replaces it: what is under results/ is the
# archive, and this a copy that the next run completes.


rule upload:
    input:
        "results/{name}",
    output:
        storage(f"{SETTINGS.upload_to}/{{name}}"),
    log:
        "logs/upload/{name}.log",
    wildcard_constraints:
        name=r"(receipts/)?[^/]+",
    conda:
        "../../environment.yml"
    message:
        "Uploading {wildcards.name}"
    shell:
        "cp {input:q} {output:q} 2> {log:q}"


# Where the storage does not answer: the run goes on, and fails in the end.
rule no_upload:
    output:
        temp(STORAGE_FAILED),
    log:
        "logs/upload.log",
    conda:
        "../../environment.yml"
    message:
        "Object storage does not answer"
    shell:
        "echo 'Error: nothing is uploaded, see the closing summary' > {log:q}; exit 1"
