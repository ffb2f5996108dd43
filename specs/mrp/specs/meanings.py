"""What every field of every document means, in one sentence: for editors, and for the tables of docs/language.md."""

from decimal import Decimal

from mrp.cache.canonical import Json, number_text
from mrp.specs.documents import Document
from mrp.specs.expectation import take_apart
from mrp.specs.quantity import duration_text, size_text

MEANINGS: dict[str, dict[str, str]] = {
    "WorkspaceFile": {
        "mrp": "The version of the language.",
        "name": "The workspace's name, for people.",
        "policy": "The policy file, relative to the workspace; without one the strict built-in policy holds.",
        "secrets": "Where the values of secrets come from.",
        "configs": "What each `--config NAME` sets; `select` reads the name.",
    },
    "Secrets": {
        "provider": "`env` reads environment variables, `dotenv` a file, `command` what a program prints.",
        "path": "The file of `dotenv`.",
        "command": "The program of `command`; the secret's name is its last argument.",
    },
    "Config": {
        "engine": "The engine that actions run on.",
        "sandbox": "The backend that isolates them.",
        "jobs": "How many actions run at once.",
    },
    "BuildFile": {
        "mrp": "The version of the language.",
        "targets": "The targets of the package by name.",
    },
    "PolicyFile": {
        "mrp": "The version of the language.",
        "max_workers": "The most actions at once.",
        "max_wall": "The longest that a build may take.",
        "max_timeout": "The longest timeout of one action.",
        "max_memory": "The most memory of one sandbox.",
        "max_cpus": "The most cpus of one sandbox.",
        "max_usd": "The most US dollars of one build.",
        "network": "`host:port` patterns that sandboxes may reach; `*` allows `open`.",
        "isolation": "The weakest isolation that results may be made under.",
        "operators": "Label patterns of the operators that may run.",
        "images": "Patterns of the images that may be used.",
        "sinks": "Label patterns of the sinks that may be written.",
        "sink_paths": "Globs below the workspace that json, parquet and files sinks may write.",
        "secrets": "Names of the secrets that sandboxes, fetches, models and sinks may be given.",
        "self_reported_rewards": "Whether an agent's own metric may be its reward.",
        "rules": "Rules of your own.",
    },
    "PolicyRule": {
        "name": "The rule's name, for its message.",
        "deny": "An expression over a target's fields; a target for which it is true is refused.",
        "message": "What the refusal says.",
    },
    "Fetch": {
        "url": "An http(s) address of a file or archive.",
        "pypi": "A file on PyPI, as `name==version`.",
        "git": "The address of a git repository.",
        "path": "A file on this machine.",
        "sha256": "The pin of everything but git: the SHA-256 of what is downloaded.",
        "rev": "The pin of git: a whole commit id.",
        "size": "The number of bytes, checked while they arrive.",
        "secret": "The name of a secret that is sent as a bearer token.",
        "downloaded_at": "When the pin was made; it goes to `_meta.json` and enters no key.",
    },
    "Generate": {
        "range": "So many records, with ids 0, 1, 2 and so on.",
        "command": "A program that prints one JSON object a line.",
        "operator": "An operator that makes the records.",
        "srcs": "The files that the command finds: globs, and labels of targets whose outputs it needs.",
        "sandbox": "Where the command or operator runs.",
        "params": "Passed to the command or operator.",
    },
    "View": {
        "fields": "The fields of the record that belong to this view.",
        "files": "Files to make, by path, from templates such as `${record.prompt}`.",
    },
    "Dockerfile": {
        "dockerfile": "The Dockerfile, relative to the package.",
        "context": "The folder that the Dockerfile sees.",
    },
    "Layer": {
        "copy": "Files, globs or labels, each with its destination folder in the image.",
        "pip": "A requirements file in which each line pins a version, with hashes; wheels only.",
        "npm": "A package-lock.json.",
        "deb": "Debian packages by name; what they depend on comes with them.",
        "lock": "The lock of the Debian packages, which `mrp image lock` writes.",
        "tar": "An archive that is unpacked at `/`: a file or an http(s) address.",
        "sha256": "The archive's SHA-256.",
        "dirs": "Empty folders.",
        "links": "Symbolic links: path and target.",
        "run": "Commands, each as a list of words, with no network.",
    },
    "Gpus": {
        "count": "How many.",
        "type": "Which, such as `A100`.",
    },
    "Limits": {
        "cpus": "Cores.",
        "memory": "Memory of all processes together.",
        "wall": "Wall time; such limits depend on the machine, and results that hit one are marked nonreproducible.",
        "pids": "Processes and threads at once.",
        "disk": "Bytes written to `/work`, `/out` and `/tmp` together.",
        "gpus": "GPUs.",
        "resources": "Resources of a cluster by the names that its nodes give them; in no key.",
    },
    "AllowedHosts": {"allow": "`host:port` pairs; `*` stands for any part of a host name."},
    "Setup": {"run": "Commands, each as a list of words, run once in `/work`; the result is cached as a snapshot."},
    "Volume": {"name": "The volume's name; its newest version is the input, and success commits the next."},
    "TrialLimits": {
        "calls": "Calls of the model.",
        "tokens": "Tokens in and out.",
        "usd": "US dollars, by the model's price.",
    },
    "Grade": {
        "command": "A program that runs in the grader's sandbox; exit 0 is reward 1 unless it writes rewards itself.",
        "operator": "An operator that grades.",
        "result": "A metric of the agent's own result.json; the results say that it is self-reported.",
        "sandbox": "Where the grader runs; without it, in the rollout's sandbox.",
        "timeout": "Wall time of the grader; a grader that hits it gives reward 0.",
    },
    "Cost": {
        "usd": "US dollars.",
        "tokens": "Tokens.",
        "wall": "Wall time.",
    },
    "Budget": {
        "usd": "US dollars of all targets together; the build stops there.",
        "tokens": "Tokens of all targets together.",
        "wall": "Wall time of the whole build.",
    },
    "OperatorFiles": {
        "input": "The file that the agent reads: record, params, seed, sample and model as JSON.",
        "output": "The file that the agent writes: its result as JSON.",
    },
    "Serve": {
        "version": "The version of vLLM that must serve; part of every key.",
        "replicas": "How many servers.",
        "port": "The first server's port; a free one without it.",
        "gpus": "The GPUs to use, by number.",
        "quantization": "The quantization, in vLLM's words.",
        "tensor_parallel": "Over how many GPUs one replica is spread.",
        "dtype": "The type of the weights, in vLLM's words.",
        "engine_args": "Further arguments of vLLM.",
        "env": "Environment variables of the servers.",
        "as": "A process of this machine, or a Ray actor.",
    },
    "Price": {
        "input": "US dollars per million tokens in.",
        "output": "US dollars per million tokens out.",
    },
    "Health": {
        "path": "The path that answers 200 when a replica is well.",
        "start": "How long a new replica may take until it is well.",
        "every": "How often it is asked.",
        "timeout": "How long an answer may take.",
    },
    "Target": {
        "description": "What the target is for, for people.",
        "tags": "Words for queries such as `attr(tags, slow, //...)`.",
    },
    "Dataset": {
        "srcs": "Globs of the files or folders that hold the records, and labels of targets that make them.",
        "fetch": "A pinned download.",
        "generate": "Records that are computed.",
        "of": "Other datasets, one after the other.",
        "format": "How records are stored; `.gz` and `.zst` are read through.",
        "id": "The field that is a record's id; without it the folder's name, else the record's digest.",
        "schema": "A JSON Schema file that every record must fit.",
        "where": "An expression over a record's fields; records for which it is not true are left out.",
        "dedupe": "Fields by which records are the same; the lowest id stays.",
        "split": "Named parts with their shares, by hash of the id: a new record moves no other.",
        "starter": "What a trial finds in `/work`: globs for folders, field names or files for rows.",
        "private": "What graders are given and agents are not.",
        "solution": "What only agents with `sees: solution` are given, at `/solution`.",
        "metadata": "Facts for `_meta.json`, such as source, version and license.",
    },
    "Image": {
        "base": "`scratch`, `host`, a label, `name@sha256:...` (or `registry:///` before it), a Dockerfile (also as"
        " `dockerfile:///path`), `modal:///...` or `snapshot:///...`.",
        "toolchain": "With `base: host`: the only programs that are visible, with what they need.",
        "layers": "What is put on the base, in order.",
        "env": "Environment variables of everything that runs in the image.",
        "user": "The numbers of user and group.",
    },
    "Sandbox": {
        "image": "What the file system is.",
        "network": "`none`, `open`, or the hosts that may be reached.",
        "limits": "What may be used.",
        "allow": "The programs that may be executed at all; without it, all in the image.",
        "setup": "Commands that run once.",
        "env": "Environment variables.",
        "secrets": "Names of secrets that become environment variables.",
        "volumes": "Versioned folders by path in the sandbox.",
    },
    "Operator": {
        "version": "The version of the operator, as text.",
        "entry": "A module of `srcs` and a class of mrp.sdk in it.",
        "command": "A program, instead of a class.",
        "srcs": "The operator's files: globs, and labels of targets.",
        "pure": "Whether it keeps no state between items, so that it may share a process.",
        "sandbox": "Where it runs when its user names none; the default is `builtin:host`.",
        "schema": "A JSON Schema file that its params must fit.",
    },
    "Agent": {
        "sees": "`solution` gives it the solution, for calibration; results say so.",
        "files": "For agents that read one file and write one file.",
    },
    "Model": {
        "provider": "What answers.",
        "model": "The model's name, as the provider knows it.",
        "url": "The address of an OpenAI-compatible server.",
        "secret": "The name of the secret that is sent as the key.",
        "weights": "The weights: a folder of the package, or a name on a hub.",
        "revision": "The commit of weights on a hub.",
        "script": "With `scripted`: a file of answers, or a `.py` with a function `answer`.",
        "template": "A chat template file.",
        "sampling": "Sampling parameters; they may use `${params.x}`.",
        "serve": "How vLLM is started.",
        "price": "What it costs.",
        "health": "How replicas are watched.",
        "seeded": "Whether the same seed gives the same answer.",
        "max_concurrency": "The most calls at once.",
        "tokens_per_minute": "The most tokens in a minute.",
    },
    "Rollout": {
        "over": "The dataset; each record is an item.",
        "agent": "Who works on it; `${matrix.x}` is filled in.",
        "sandbox": "Where the agent runs.",
        "model": "The model that the agent may call.",
        "samples": "How many trials each item gets.",
        "epoch": "Raise it to draw sampled results anew.",
        "seed": "Part of every trial's seed.",
        "params": "Passed to the agent.",
        "matrix": "Values by axis; each combination is a cell, and its values are merged into the params.",
        "env": "Environment variables of the trial; templates are filled in.",
        "limits": "What one trial may use of its model.",
        "timeout": "Wall time of one trial.",
        "retries": "How often a trial is started again after infrastructure failed.",
        "max_parallel": "The most trials at once.",
        "grade": "How trials are scored.",
        "cost": "The estimate for one trial.",
    },
    "Reduction": {
        "of": "What is reduced: rollouts, datasets, reductions, evaluations.",
        "reducer": "`concat`, `count`, `stats`, `pass_at_k`, `table`, or the label of a reducer.",
        "params": "Passed to the reducer.",
        "group_by": "Axes, and `agent`, `model` and `target`.",
        "min_success": "The share of trials that must have an outcome.",
        "expect": "An expression over result.json; when it is not true the build fails.",
        "sandbox": "Where a reducer of yours runs.",
        "select": "Which trials are reduced: an expression over id, sample, matrix, params, outcome and rewards.",
    },
    "Evaluation": {
        "of": "What is judged.",
        "evaluator": "Who judges.",
        "model": "The model that the evaluator may call.",
        "params": "Passed to the evaluator.",
        "sandbox": "Where it runs.",
        "expect": "An expression over result.json; when it is not true the build fails.",
    },
    "Sink": {
        "type": "What is written.",
        "path": "Where: a path in the workspace, or an `s3://` address.",
        "schema": "A JSON Schema file that every row must fit.",
        "mode": "`create` writes once, `replace` keeps the newest, `append` adds.",
        "acl": "Label patterns of the produce targets that may write here; without any, all.",
        "secret": "The name of the secret that opens it.",
    },
    "Produce": {
        "of": "What is published.",
        "rows": "The results, or the trajectories.",
        "sink": "Where it goes.",
        "gate": "An expression over result.json; when it is not true nothing is written, which is no failure.",
        "producer": "An operator that makes the rows.",
        "sandbox": "Where a producer runs.",
    },
    "Job": {
        "of": "What is built.",
        "budget": "What all of it may cost.",
    },
    "Command": {
        "srcs": "The files that it finds: globs, and labels of targets whose outputs it needs.",
        "outs": "The files and folders that it makes, relative to the package.",
        "command": "The program and its arguments; `${srcs}` and `${outs}` stand for those paths.",
        "sandbox": "Where it runs.",
        "env": "Environment variables.",
    },
    "Session": {
        "agent": "Who answers.",
        "prompts": "The prompts, in order; each works on the state that the one before left.",
        "sandbox": "Where the agent runs.",
        "model": "The model that the agent may call.",
        "starter": "What the first prompt finds in `/work`.",
        "params": "Passed to the agent.",
        "seed": "Part of every prompt's seed.",
        "timeout": "Wall time of one prompt.",
    },
    "Resources": {
        "cpus": "Cores.",
        "memory": "Memory of all processes together.",
        "gpus": "GPUs.",
    },
    "OperatorFile": {
        "mrp": "The version of the language.",
        "kind": "What the operator is.",
        "name": "The name of its target.",
        "version": "The version of the operator, as text.",
        "entry": "A module of `srcs` and a class of mrp.sdk in it.",
        "command": "A program, instead of a class.",
        "srcs": "The operator's files: globs, and labels of targets.",
        "image": "The image that it runs in.",
        "schema": "A JSON Schema file that its params must fit.",
        "resources": "What it needs to run.",
        "sees": "`solution` gives an agent the solution, for calibration; results say so.",
        "pure": "Whether it keeps no state between items, so that it may share a process.",
        "files": "For agents that read one file and write one file.",
    },
    "Pin": {
        "version": "The version that was pinned.",
        "digest": "The operator's digest.",
        "signature": "A signature of the digest.",
    },
    "OperatorsLock": {
        "mrp": "The version of the language.",
        "operators": "The pin of each operator, by label.",
    },
}


def meaning(model: type[Document], field: str) -> str:
    """The sentence for a field, by the name that users write. Raises KeyError for an unknown field."""
    for ancestor in model.__mro__:
        sentence = MEANINGS.get(ancestor.__name__, {}).get(field)
        if sentence is not None:
            return sentence
    raise KeyError(f"{model.__name__}.{field}")


def shown_default(model: type[Document], field: str) -> Json:
    """A field's default as a user would write it; None where there is none, or where it is a mapping of defaults."""
    name = next(name for name, info in model.model_fields.items() if (info.alias or name) == field)
    info = model.model_fields[name]
    if info.is_required() or isinstance(info.default, Document):
        return None
    words = take_apart(info.annotation, tuple(info.metadata)).words
    if isinstance(info.default, int | Decimal) and words.startswith("a size"):
        return size_text(int(info.default))
    if isinstance(info.default, Decimal) and words.startswith("a duration"):
        return duration_text(info.default)
    if isinstance(info.default, Decimal):
        text = number_text(info.default)
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return info.default
