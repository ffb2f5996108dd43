"""W1 in the words of each tool: a command copies each leaf, one joins each group, one joins all groups."""

from collections.abc import Sequence

from benchmarks.workloads.leaves import GROUP, leaf, made


def mrp_files(groups: Sequence[str]) -> dict[str, str]:
    """A package for each group, and a root."""
    commands = [
        f'  o{number:02d}: {{kind: command, srcs: ["{leaf(number)}"], outs: ["{made(number)}"],'
        f' command: [cp, "{leaf(number)}", "{made(number)}"]}}\n'
        for number in range(GROUP)
    ]
    parts = ", ".join(f'":o{number:02d}"' for number in range(GROUP))
    package = (
        f"mrp: 1\ntargets:\n{''.join(commands)}"
        f'  all: {{kind: command, srcs: [{parts}], outs: ["all.txt"], command: [sh, -c, "cat out*.txt > all.txt"]}}\n'
    )
    alls = ", ".join(f'"//{group}:all"' for group in groups)
    root = (
        f'mrp: 1\ntargets:\n  root: {{kind: command, srcs: [{alls}], outs: ["root.txt"],'
        ' command: [sh, -c, "cat g*/all.txt > root.txt"]}\n'
    )
    return {"BUILD.yaml": root, **{f"{group}/BUILD.yaml": package for group in groups}}


def bazel_files(groups: Sequence[str]) -> dict[str, str]:
    """The same packages with genrules."""
    commands = [
        f'genrule(name = "o{number:02d}", srcs = ["{leaf(number)}"], outs = ["{made(number)}"], cmd = "cp $< $@")\n'
        for number in range(GROUP)
    ]
    parts = ", ".join(f'":o{number:02d}"' for number in range(GROUP))
    package = (
        f'package(default_visibility = ["//visibility:public"])\n{"".join(commands)}'
        f'genrule(name = "all", srcs = [{parts}], outs = ["all.txt"], cmd = "cat $(SRCS) > $@")\n'
    )
    alls = ", ".join(f'"//{group}:all"' for group in groups)
    root = f'genrule(name = "root", srcs = [{alls}], outs = ["root.txt"], cmd = "cat $(SRCS) > $@")\n'
    return {"WORKSPACE": "", "BUILD": root, **{f"{group}/BUILD": package for group in groups}}


def ninja_files(groups: Sequence[str]) -> dict[str, str]:
    """One build.ninja; results lie in out/."""
    lines = ["rule copy", "  command = cp $in $out", "rule join", "  command = cat $in > $out"]
    for group in groups:
        lines += [f"build out/{group}/{made(n)}: copy {group}/{leaf(n)}" for n in range(GROUP)]
        lines.append(f"build out/{group}/all.txt: join " + " ".join(f"out/{group}/{made(n)}" for n in range(GROUP)))
    lines.append("build out/root.txt: join " + " ".join(f"out/{group}/all.txt" for group in groups))
    return {"build.ninja": "\n".join(lines) + "\n"}


def snakemake_files(groups: Sequence[str]) -> dict[str, str]:
    """One Snakefile with wildcards; results lie in out/."""
    return {
        "Snakefile": f"""\
GROUPS = {list(groups)}
LEAVES = [f"{{number:02d}}" for number in range({GROUP})]

rule root:
    input: expand("out/{{group}}/all.txt", group=GROUPS)
    output: "out/root.txt"
    shell: "cat {{input}} > {{output}}"

rule join:
    input: expand("out/{{{{group}}}}/out{{leaf}}.txt", leaf=LEAVES)
    output: "out/{{group}}/all.txt"
    shell: "cat {{input}} > {{output}}"

rule copy:
    input: "{{group}}/in{{leaf}}.txt"
    output: "out/{{group}}/out{{leaf}}.txt"
    shell: "cp {{input}} {{output}}"
"""
    }


def dvc_files(groups: Sequence[str]) -> dict[str, str]:
    """One dvc.yaml with a stage for each command; results lie in out/."""
    stages = {}
    for group in groups:
        parts = [f"out/{group}/{made(number)}" for number in range(GROUP)]
        for number, part in enumerate(parts):
            source = f"{group}/{leaf(number)}"
            stages[f"{group}-o{number:02d}"] = (f"mkdir -p out/{group} && cp {source} {part}", [source], part)
        stages[f"{group}-all"] = (f"cat {' '.join(parts)} > out/{group}/all.txt", parts, f"out/{group}/all.txt")
    alls = [f"out/{group}/all.txt" for group in groups]
    stages["root"] = (f"cat {' '.join(alls)} > out/root.txt", alls, "out/root.txt")
    text = "stages:\n"
    for name, (command, sources, result) in stages.items():
        text += f"  {name}:\n    cmd: {command}\n    deps: [{', '.join(sources)}]\n    outs: [{result}]\n"
    return {"dvc.yaml": text}
