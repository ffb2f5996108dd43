"""Items as redun tasks, one an item."""
# mypy: ignore-errors
# It runs in the environment of its peer, which mypy does not see.

from redun import task

redun_namespace = "items"


@task()
def echo(item: int) -> dict:
    return {"reward": 1}


@task()
def counted(results: list) -> str:
    return f"items: {len(results)}"


@task()
def main(size: int) -> str:
    return counted([echo(item) for item in range(size)])
