# Exports in the forms that other tools read: COCO, MOTChallenge, Parquet; and all batches as one
# data set.
#
# Needs: the exports, the configuration's options for conversions.
# Makes: results/coco/<export>.json, results/mot/<export>/, results/tables/<export>.parquet, and
# under results/dataset/<filter>/ what is merged. Each lies there only whole.


wildcard_constraints:
    # What is selected is selected under one filter.
    status_filter=SETTINGS.status_filter,


rule convert_coco:
    input:
        tracks="results/{export}_tracks.json",
        options=options_of("coco"),
    output:
        "results/coco/{export}.json",
    log:
        "logs/coco/{export}.log",
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Converting {wildcards.export} to COCO"
    script:
        "../scripts/convert_coco.py"


rule convert_mot:
    input:
        tracks="results/{export}_tracks.json",
        options=options_of("mot"),
    output:
        directory("results/mot/{export}"),
    log:
        "logs/mot/{export}.log",
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Converting {wildcards.export} to MOTChallenge"
    script:
        "../scripts/convert_mot.py"


rule convert_table:
    input:
        tracks="results/{export}_tracks.json",
        options=options_of("tables"),
    output:
        "results/tables/{export}.parquet",
    log:
        "logs/tables/{export}.log",
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Converting {wildcards.export} to a table"
    script:
        "../scripts/convert_table.py"


rule merge_coco:
    input:
        batches=selected_conversions("coco"),
        options=options_of("dataset"),
    output:
        expand(MERGED_COCO, name=DATASET_NAMES, allow_missing=True),
    log:
        "logs/dataset/{status_filter}_coco.log",
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Merging the batches' COCO files"
    script:
        "../scripts/merge_coco.py"


rule merge_tables:
    input:
        batches=selected_conversions("tables"),
        options=options_of("dataset"),
    output:
        directory(MERGED_TABLES),
    log:
        "logs/dataset/{status_filter}_tables.log",
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Gathering the batches' tables"
    script:
        "../scripts/merge_tables.py"
