"""A workspace with every kind and every field of the language, for golden files."""

from pathlib import Path

from support.workspaces import Workspace

FILES = {
    "mrp.yaml": """
        mrp: 1
        name: showcase
        policy: policy.yaml
        secrets: {provider: dotenv, path: .env}
        configs: {gpu: {engine: ray, sandbox: docker, jobs: 4}}
    """,
    "policy.yaml": """
        mrp: 1
        max_workers: 16
        max_wall: 2h
        max_timeout: 30m
        max_memory: 32GiB
        max_cpus: 8
        max_usd: 10
        network: ["pypi.org:443"]
        isolation: namespaces
        operators: ["//..."]
        images: ["//...", host, scratch, "*@sha256:*", "modal:///*", "snapshot:///*"]
        sinks: ["//sinks/..."]
        sink_paths: ["sinks/**"]
        secrets: [GITHUB_TOKEN, S3_KEY, HUB_TOKEN]
        self_reported_rewards: true
        rules:
          - {name: few-samples, deny: "kind == 'rollout' and samples > 100", message: ask the owner}
    """,
    "operators.lock": """
        mrp: 1
        operators: {}
    """,
    "jobs/BUILD.yaml": """
        mrp: 1
        targets:
          tasks:
            kind: dataset
            description: exercises
            tags: [python]
            srcs: ["tasks/*.jsonl"]
            format: jsonl
            id: id
            schema: record.schema.json
            where: "language == 'python' and len(instruction) <= 2000"
            dedupe: [instruction, pre]
            split: {train: 0.8, test: 0.2}
            starter: {files: {main.py: "${record.prompt}"}}
            private: {fields: [tests], files: {tests/test_it.py: "${record.tests}"}}
            solution: [canonical]
            metadata: {source: exercises, version: "1.0", license: MIT}
          folders:
            kind: dataset
            srcs: ["folders/*"]
            format: dir
            starter: ["start/**"]
            private: ["tests/**"]
            solution: ["solution/**"]
          pinned:
            kind: dataset
            fetch:
              url: https://example.org/a.jsonl.gz
              sha256: "0000000000000000000000000000000000000000000000000000000000000000"
              size: 12
              secret: HUB_TOKEN
              downloaded_at: "2026-01-01"
          numbers: {kind: dataset, generate: {range: 100}}
          printed:
            kind: dataset
            generate: {command: [python3, make.py], srcs: [make.py], sandbox: box, params: {n: 3}}
          made: {kind: dataset, generate: {operator: ":oracle"}}
          both: {kind: dataset, of: [":tasks@split=test", numbers]}
          py:
            kind: image
            base: host
            toolchain: [python3]
            layers:
              - copy: {"agent/": /opt/agent, "//tools:bin": /opt/bin, run.sh: /opt/run.sh, "*.txt": /opt/text/}
              - dirs: [/var/cache]
              - links: {/usr/bin/py: python3}
              - {tar: data.tar, sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
            env: {LANG: C.UTF-8}
            user: "1000:1000"
          packed:
            kind: image
            base: scratch
            layers:
              - {pip: requirements.lock}
              - {npm: package-lock.json}
              - {deb: [python3], lock: debs.lock}
              - run: [[touch, /ready]]
          based: {kind: image, base: ":py"}
          registry:
            kind: image
            base: python@sha256:0000000000000000000000000000000000000000000000000000000000000000
          modal: {kind: image, base: "modal:///debian_slim"}
          snapshot: {kind: image, base: "snapshot:///id"}
          docker: {kind: image, base: {dockerfile: Dockerfile, context: agent}}
          box:
            kind: sandbox
            image: :py
            network: none
            limits:
              cpus: 2
              memory: {select: {gpu: 32GiB, default: 4GiB}}
              wall: 30s
              pids: 128
              disk: 1GiB
              gpus: {count: 1, type: A100}
              resources: {scanner: 1}
            allow: [python3, ast-grep]
            setup: {run: [[git, init]]}
            env: {HOME: /work}
            secrets: [GITHUB_TOKEN]
            volumes: {/home/agent/.memory: {name: memory}}
          online: {kind: sandbox, network: {allow: ["pypi.org:443"]}}
          oracle:
            kind: agent
            version: 1.0.0
            entry: "oracle:Oracle"
            srcs: ["oracle.py"]
            sees: solution
            pure: false
          shell:
            kind: agent
            version: "2"
            command: [sh, run.sh]
            srcs: [run.sh, ":prep"]
            files: {input: /tmp/rollout.json, output: /tmp/result.json}
            sandbox: :box
            schema: record.schema.json
          summary: {kind: reducer, version: "1", entry: "summary:Summary"}
          writer: {kind: producer, version: "1", entry: "writer:Writer", pure: true}
          judge: {kind: evaluator, version: "1", entry: "judge:Judge"}
          solve:
            kind: rollout
            over: :tasks
            agent: "${matrix.agent}"
            sandbox: :box
            model: //models:qwen
            samples: 2
            epoch: 0
            seed: 0
            params: {effort: high}
            matrix: {agent: [oracle, "builtin:nop"], temperature: [0.0, 0.70]}
            env:
              TASK_DIR: /task
              WORKSPACE: /work
              COMPETITION_ID: "${record.id}"
              RUN_ID: "${trial}"
              T: "${matrix.temperature}"
            limits: {calls: 50, tokens: 20000, usd: 0.10}
            timeout: 60s
            retries: 2
            max_parallel: 8
            grade: {command: [python3, -m, pytest, -q, /task/tests], timeout: 20s, sandbox: online}
            cost: {usd: 0.002, tokens: 2000, wall: 10s}
          judged-solve: {kind: rollout, over: folders, agent: shell, grade: {operator: ":judge"}}
          claimed: {kind: rollout, over: "//jobs:both", agent: "builtin:oracle", grade: {result: reward}}
          eval:
            kind: reduction
            of: [solve]
            reducer: stats
            params: {k: [1, 2]}
            group_by: [agent]
            min_success: 1.0
            expect: "reward.mean >= 0.9"
          own:
            kind: reduction
            of: ["solve@agent=oracle", numbers]
            reducer: summary
            select: "sample == 0"
            sandbox: box
          judged: {kind: evaluation, of: eval, evaluator: ":judge", model: "//models:qwen", params: {strict: true}}
          publish:
            kind: produce
            of: :eval
            rows: results
            sink: //sinks:board
            gate: "reward.mean >= 0.9"
          trajectories:
            kind: produce
            of: "solve@agent=oracle,temperature=0"
            rows: trajectory
            sink: //sinks:bucket
            producer: writer
          all: {kind: job, of: [":eval", ":publish"], budget: {usd: 5, tokens: 100000, wall: 10m}}
          everything:
            kind: job
            of: [all, trajectories, judged, own, claimed, judged-solve, printed, made, pinned, chat]
          images: {kind: job, of: [based, packed, registry, modal, snapshot, docker]}
          prep: {kind: command, srcs: ["in.txt"], outs: ["out.txt"], command: [cp, "${srcs}", "${outs}"], env: {A: b}}
          chat:
            kind: session
            agent: shell
            prompts: [hello, and now]
            starter: ["agent/**"]
            model: //models:served
            params: {a: 1}
            seed: 1
            timeout: 1m
    """,
    "jobs/tasks/a.jsonl": '{"id": "a"}\n',
    "jobs/folders/one/start/main.py": "",
    "jobs/folders/one/tests/test.py": "",
    "jobs/record.schema.json": "{}\n",
    "jobs/agent/main.py": "pass\n",
    "jobs/oracle.py": "pass\n",
    "jobs/summary/__init__.py": "pass\n",
    "jobs/summary/more.py": "pass\n",
    "jobs/writer.py": "pass\n",
    "jobs/judge.py": "pass\n",
    "jobs/make.py": "pass\n",
    "jobs/run.sh": "true\n",
    "jobs/in.txt": "in\n",
    "jobs/data.tar": "",
    "jobs/requirements.lock": "",
    "jobs/package-lock.json": "{}",
    "jobs/debs.lock": """
        {"mrp": 1, "distribution": "debian", "architecture": "amd64", "packages": [
         {"name": "python3", "version": "3", "architecture": "amd64", "url": "http://deb.debian.org/python3_3_amd64.deb",
          "sha256": "0000000000000000000000000000000000000000000000000000000000000000", "size": 1, "depends": []}]}
    """,
    "jobs/Dockerfile": (
        "FROM python@sha256:0000000000000000000000000000000000000000000000000000000000000000 AS one\nFROM one\n"
    ),
    "tools/BUILD.yaml": """
        mrp: 1
        targets:
          bin: {kind: command, outs: [tool], command: [touch, tool]}
    """,
    "tools/operator.yaml": """
        mrp: 1
        kind: agent
        name: helper
        version: "3"
        entry: "helper:Helper"
        image: //jobs:py
        resources: {cpus: 2, memory: 1GiB}
        sees: public
        pure: true
    """,
    "tools/helper.py": "pass\n",
    "models/BUILD.yaml": """
        mrp: 1
        targets:
          qwen:
            kind: model
            provider: scripted
            script: script.jsonl
            sampling: {temperature: "${params.temperature}", top_p: 0.90}
            price: {input: 0.1, output: 0.2}
            seeded: true
          served:
            kind: model
            provider: vllm
            model: Qwen/Qwen3-4B
            weights: ./weights
            revision: abc
            template: chat.jinja
            serve:
              replicas: 2
              gpus: [0, 1]
              quantization: awq
              dtype: float16
              engine_args: {max_num_seqs: 1}
              as: actor
            health: {path: /health, every: 5s, timeout: 1s}
            max_concurrency: 4
            tokens_per_minute: 1000
    """,
    "models/script.jsonl": "{}\n",
    "models/weights/a.bin": "",
    "models/chat.jinja": "",
    "sinks/BUILD.yaml": """
        mrp: 1
        targets:
          board: {kind: sink, type: json, path: out/board.json, schema: s.json, mode: replace, acl: ["//jobs:publish"]}
          bucket: {kind: sink, type: s3, path: "s3://bucket/key", secret: S3_KEY, mode: append}
    """,
    "sinks/s.json": "{}",
}


def showcase(root: Path) -> Workspace:
    """The workspace below `root`, whose run.sh is executable."""
    workspace = Workspace(root, FILES)
    (root / "jobs/run.sh").chmod(0o755)
    return workspace
