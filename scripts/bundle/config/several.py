"""Several models in one deployment: Settings for each, and what they must not contradict each other in."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bundle.config.envfile import Entry, Problem
from bundle.config.keys import HOST_KEYS, MODELS
from bundle.config.settings import Settings

_SHARE, _NAME, _ADAPTERS = "ENGINE_GPU_MEMORY_UTILIZATION", "ENGINE_SERVED_MODEL_NAME", "ENGINE_LORA_MODULES"


def held_together(models: Sequence[Settings]) -> tuple[Settings, ...]:
    """`models`, the errors that they only have together added to the problems of the later one."""
    found = [list(each.problems) for each in models]
    if len(models) > 1:
        for number, problem in (*_names(models), *_cards(models), *_unnamed(models), *_count(models)):
            found[number].append(problem)
    return tuple(replace(each, problems=tuple(problems)) for each, problems in zip(models, found, strict=True))


def cards(settings: Settings) -> tuple[str, ...]:
    """The GPUs that the engines of a model take, as HOST_GPUS would name them; none where its values are wrong or it runs on the CPU."""
    keys = ("HOST_GPUS", "HOST_GPU_COUNT", "HOST_REPLICAS")
    if settings.image_target != "cuda" or any(HOST_KEYS[key].fault(settings.value(key)) for key in keys):
        return ()
    return settings.gpus or tuple(str(index) for index in range(settings.gpu_count))


def _names(models: Sequence[Settings]) -> Iterator[tuple[int, Problem]]:
    """Requests are told apart by these names alone."""
    taken: dict[str, Settings] = {}
    for number, each in enumerate(models):
        if number and each.names_no_model:  # told of below
            continue
        for name in dict.fromkeys(each.model_names):
            if name in taken:
                other, key = taken[name], _naming(each, name)
                yield number, _problem(each, key, f"{name} is served by profile {other.profile} already ({_origin(other, _naming(other, name))}), "
                                       f"and requests are told apart by the model's name. Set another in env/{each.profile}.env.")
            taken[name] = each


def _naming(settings: Settings, name: str) -> str:
    """Which key gives the name."""
    return _ADAPTERS if name in settings.adapters else _NAME


def _cards(models: Sequence[Settings]) -> Iterator[tuple[int, Problem]]:
    on: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(models):
        for card in cards(each):
            on[card].append(number)
    if len({card.isdigit() for card in on}) > 1:
        last = max(numbers[-1] for numbers in on.values())
        yield last, _problem(models[last], "HOST_GPUS", "GPUs are named by index for one model and by UUID for another: whether they share one "
                             "cannot be told. Name all in one way.")
        return
    for card, numbers in {tuple(numbers): (card, numbers) for card, numbers in reversed(on.items())}.values():
        sharing = [models[number] for number in numbers]
        if len(sharing) < 2:
            continue
        which, remedy = sharing[-1], f"or give each its own card: HOST_GPUS in env/{sharing[-1].profile}.env"
        if automatic := [each.profile for each in sharing if each.gpu_share is None]:
            yield numbers[-1], _problem(which, _SHARE, f"GPU {card} is shared by {' and '.join(each.profile for each in sharing)}, and auto "
                                        f"({', '.join(automatic)}) takes all that is free. Write a number, {remedy}.")
            continue
        shares = [(each.profile, each.gpu_share or 0.0) for each in sharing]
        if (total := sum(share for _, share in shares)) > 1 + 1e-9:
            sum_ = " + ".join(f"{share:g} ({profile})" for profile, share in shares)
            yield numbers[-1], _problem(which, _SHARE, f"GPU {card} is overbooked: {sum_} = {total:.4g} of its memory. Lower one of them "
                                        f"({', '.join(_origin(each, _SHARE) for each in sharing)}), {remedy}.")


def _unnamed(models: Sequence[Settings]) -> Iterator[tuple[int, Problem]]:
    for number, each in enumerate(models[1:], start=1):
        if each.names_no_model:
            yield number, _problem(each, "MODEL_DIR", f"names no model, as a further one must. Set MODEL_DIR in env/{each.profile}.env.")


def _count(models: Sequence[Settings]) -> Iterator[tuple[int, Problem]]:
    if len(models) > len(MODELS):
        what = f"{len(models)} models; one deployment serves at most {len(MODELS)}."
        yield len(models) - 1, Problem(file="--profile", line=0, key="", message=what)


def _problem(settings: Settings, key: str, message: str) -> Problem:
    entry = settings.entries.get(key) or Entry(key=key, value="", file=f"env/{settings.profile}.env", line=0)
    return Problem(file=entry.file, line=entry.line, key=key, message=message)


def _origin(settings: Settings, key: str) -> str:
    entry = settings.entries.get(key)
    return entry.origin if entry else f"vLLM's default, profile {settings.profile}"
