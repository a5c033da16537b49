"""What the READMEs say about the GPU, from results/gpu.json."""


def page(results: dict) -> list[str]:
    return []


def publish(results: dict) -> None:
    pass
