"""Can models without a common ancestor be averaged once the units of one are in the order of the other's?

Perceptrons of two hidden layers learn scikit-learn's digits from different initialisations. On the line between two of them, the
barrier is the largest loss above the line between their losses, on digits that neither saw. It is measured before and after weight
and activation matching (Git Re-Basin, arXiv 2209.04836), over widths, and after the line's models are repaired (REPAIR, 2211.08403).

Then four of them learn the digits upright and turned by a quarter, a half and three quarters. Their average is scored on all four, as
it is and with its activations corrected: by one correction (REPAIR), and by one for each task (TACT, 2410.12766).

Two of them in one network, up to twice as wide: alike hidden units are merged, the others stand side by side, and matrices are fitted
(PLeaS, 2407.02447); or as wide as they are, where units of one network are merged, too (ZipIt, 2305.03053). Where they learned two
tasks, each has a head of its own.

Last, the same barriers between small ViTs, ResNets and GPT-2s, and what `zipit` and `pleas` make of two of them.

    python experiments/non_local.py [--smoke] [--seeds N] [--only PART ...] [--json] [--out DIR]
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared import deep_perceptron, networks, small_nets, wider_perceptrons
from shared.deep_perceptron import write
from shared.harness import Findings, Switches, main, say, table
from shared.perceptron import digits
from torch import Tensor, nn

from evomerge.alignment import Permuted, match, symmetry
from evomerge.build import Builder
from evomerge.checkpoints.folder import Checkpoint, Computed, Folder
from evomerge.models.live import LiveModel
from evomerge.recipe import Recipe
from evomerge.report.export import export

SEEDS = 5
WIDTHS = (16, 32, 64, 128, 256)
STEPS = 600
WAYS = {"before": "as they are", "after": "weights", "activations": "activations", "repaired": "weights, then REPAIR"}
WIDE = 256
PARTS = ("widths", "turned", "wider", "nets")
NET_SEEDS = 3
"""At most so many seeds for the networks of transformers."""
ALIGNED = {"align": {"source": "two", "to": "one", "by": "activations", "task": "data"}}
REPAIR = {"repair": {"source": {"merge": {"method": "linear", "inputs": ["one", ALIGNED]}}, "tasks": ["data"]}}
_TWO = {"inputs": ["one", ALIGNED], "tasks": ["data"]}
NODES = {
    "repair": REPAIR,
    "zipit": {"zipit": _TWO},
    **{f"pleas {width:g}": {"pleas": {**_TWO, "width": width}} for width in wider_perceptrons.WIDTHS[::2]},
}
TURNS = ("upright", "quarter", "half", "three quarters")
RETAINED = 0.9
"""Least share of the experts' accuracy that TACT is to leave."""
TARGET = 0.1
"""Largest barrier after matching, as a share of the barrier before, of the widest perceptrons."""
PAPER = "The paper, on MNIST and CIFAR-10: no barrier between wide multilayer perceptrons after matching, and a large one between narrow ones."


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    widths = WIDTHS[:2] if switches.smoke else WIDTHS
    steps = 60 if switches.smoke else STEPS
    data = digits()
    figures: dict[str, Any] = {"target": TARGET, "retained": RETAINED}
    tables = []
    with tempfile.TemporaryDirectory(prefix="non_local-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # statistics that nothing else reads
        if "widths" in switches.parts:
            found: dict[int, list[dict[str, Any]]] = {width: [] for width in widths}
            for width in widths:
                for seed in switches.seeds:
                    out = Path(scratch, f"{width}-{seed}")
                    folders = [
                        networks.train(width, 2 * seed + i, steps, data["train"], out / str(i)) for i in range(2)
                    ]
                    found[width].append(_pair(folders, out, data))
                    barriers = (f"{label} {found[width][-1][way]['barrier']:.3f}" for way, label in WAYS.items())
                    say(f"width {width}, seed {seed}: {', '.join(barriers)}")
            figures["widths"] = found
            tables.append(_table(found))
        if "turned" in switches.parts:
            wide = WIDTHS[0] if switches.smoke else WIDE
            figures["turned"] = []
            for seed in switches.seeds:
                merged = _turned(wide, seed, steps, Path(scratch, f"turned-{seed}"), data)
                figures["turned"].append(merged)
                say(f"seed {seed}: " + ", ".join(f"{name} {np.mean(scores):.3f}" for name, scores in merged.items()))
            tables.append(_table_of_turns(figures["turned"]))
        if "wider" in switches.parts:
            figures["wider"] = {name: [] for name in wider_perceptrons.PAIRS}
            for name, turns in wider_perceptrons.PAIRS.items():
                for seed in switches.seeds:
                    out = Path(scratch, f"wider-{turns[1]}-{seed}")
                    figures["wider"][name].append(wider_perceptrons.accuracies(seed, turns, steps, out, data, TURNS))
                    shown = (f"{key} {share:.3f}" for key, share in figures["wider"][name][-1].items())
                    say(f"{name}, seed {seed}: {', '.join(shown)}")
            tables.append(_table_of_wider(figures["wider"]))
        if "nets" in switches.parts:
            figures["nets"] = {net: [] for net in [*small_nets.CONFIGS][: 1 if switches.smoke else None]}
            for net in figures["nets"]:
                for seed in switches.seeds[:NET_SEEDS]:
                    out = Path(scratch, f"{net}-{seed}")
                    figures["nets"][net].append(_nets(net, seed, out, share=0.05 if switches.smoke else 1.0))
                    shown = (f"{way} {figures['nets'][net][-1][way]['barrier']:.3f}" for way in list(WAYS)[:3])
                    say(f"{net}, seed {seed}: {', '.join(shown)}")
            tables.append(_table_of_nets(figures["nets"]))
    return Findings(figures, "\n".join(tables), _figure(figures))


def _pair(folders: list[Path], out: Path, data: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return the line between two networks, before and after the second is in the order of the first, and repaired."""
    names = ["one", "two"]
    networks.write_task(out, "digits", data)
    pool, evidence, live = networks.measured(dict(zip(names, folders, strict=True)), out, ["digits"], ["inputs@digits"])
    one, other = (pool.experts[name] for name in names)
    units = symmetry(live, [{"pixel_values": data["test"][0][:64]}])
    by_weights = match(other, one, units)
    read = [partial(evidence.tables, "inputs@digits", name) for name in ("two", "one")]
    by_activations = match(other, one, units, (read[0], read[1]))
    matched = Permuted(other, units, lambda: by_weights)
    line = partial(_line, live.module, data=data["test"])
    shares = np.linspace(0, 1, networks.POINTS).tolist()
    state = {name: matched.tensor(name) for name in matched.info}
    aligned = [folders[0], write(state, other.config["width"], out / "matched")]
    repairs = [_repair(_mean([1 - share, share], names), ["digits"], weights=[1 - share, share]) for share in shares]
    repaired = networks.measured(
        dict(zip(names, aligned, strict=True)), out, ["digits"], ["outputs@digits", "repair"], repairs
    )[0]
    builder = Builder(repaired)
    return {
        "before": line(networks.mixes(one, other)),
        "after": line(networks.mixes(one, matched)),
        "activations": line(networks.mixes(one, Permuted(other, units, lambda: by_activations))),
        "repaired": line([builder.build(repair) for repair in repairs]),
    }


def _turned(width: int, seed: int, steps: int, out: Path, data: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return the accuracies on digits turned in four ways of networks that learned one each, and of averages of them."""
    turned = {
        name: {split: (networks.turn(images, number), labels) for split, (images, labels) in data.items()}
        for number, name in enumerate(TURNS)
    }
    folders = {}
    for number, (name, of) in enumerate(turned.items()):
        networks.write_task(out, name, of)
        folders[name] = networks.train(width, 100 + len(TURNS) * seed + number, steps, of["train"], out / name)
    first = Folder(folders[TURNS[0]])
    live = LiveModel(first, module=f"{deep_perceptron.__file__}:make")
    units = symmetry(live, [{"pixel_values": data["test"][0][:64]}])
    matched = {TURNS[0]: folders[TURNS[0]]}
    for name in TURNS[1:]:
        order = match(other := Folder(folders[name]), first, units)
        aligned = Permuted(other, units, lambda order=order: order)
        matched[name] = write({key: aligned.tensor(key) for key in aligned.info}, width, out / f"{name} matched")

    def accuracies(models: Sequence[Checkpoint]) -> list[float]:
        """Return each model's accuracy on the task at its place."""
        return [
            networks.scores(live.module, model, of["test"])[1]
            for model, of in zip(models, turned.values(), strict=True)
        ]

    found = {"experts": accuracies([Folder(folder) for folder in folders.values()])}
    mean = _mean([1 / len(TURNS)] * len(TURNS), TURNS)
    for label, models in (("average", folders), ("matched average", matched)):
        common = _repair(mean, TURNS)
        own = [_repair(mean, [name], to=[name]) for name in TURNS]
        kinds = [f"outputs@{name}" for name in TURNS]
        pool, _, _ = networks.measured(models, out, TURNS, [*kinds, "repair"], [common, *own])
        builder = Builder(pool)
        found[label] = accuracies([builder.build(mean)] * len(TURNS))
        found[f"{label}, REPAIR"] = accuracies([builder.build(common)] * len(TURNS))
        found[f"{label}, TACT"] = accuracies([builder.build(repair) for repair in own])
    return found


def _nets(net: str, seed: int, out: Path, share: float) -> dict[str, Any]:
    """Return the barrier between two networks of transformers, before and after alignment, and the scores of what they are merged to."""
    folders = [small_nets.trained(net, 2 * seed + i, out / str(i), share=share) for i in range(2)]
    test = small_nets.data(net)["test"]
    for split, (inputs, labels) in zip(("search", "report"), small_nets.data(net).values(), strict=True):
        small_nets.write_rows(
            net, out / f"data-{split}.jsonl", inputs[: networks.EXAMPLES], labels[: networks.EXAMPLES]
        )
    pool, _, live = networks.measured(
        dict(zip(("one", "two"), folders, strict=True)),
        out,
        ["data"],
        ["inputs@data", "outputs@data", "repair"],
        [Recipe.parse(REPAIR)],
        settings={"data": small_nets.task(net, out)},
        module=None,
    )
    builder = Builder(pool)

    @torch.no_grad()
    def scores(module: nn.Module) -> tuple[float, float]:
        loss, accuracy = small_nets.scores(net, module, *test)
        return float(loss), float(accuracy)

    found: dict[str, Any] = {}
    ways = {"before": "two", "after": {"align": {"source": "two", "to": "one"}}, "activations": ALIGNED}
    for way, other in ways.items():
        losses, accuracies = [], []
        for mix in networks.mixes(pool.experts["one"], builder.build(Recipe.parse(other))):
            live.refit(Computed(pool.base.info, mix.__getitem__))
            loss, accuracy = scores(live.module)
            losses.append(loss)
            accuracies.append(accuracy)
        found[way] = networks.barrier(losses, accuracies)
    for name, recipe in NODES.items():
        if net == "ResNet" and name != "repair":  # it has no MLPs
            continue
        export(Recipe.parse(recipe), pool, out / name)
        found[name] = dict(zip(("loss", "accuracy"), scores(LiveModel(out / name).module), strict=True))
    return found


def _mean(shares: Sequence[float], names: Sequence[str]) -> Recipe:
    weight = {"per": ["expert"], "values": dict(zip(names, shares, strict=True))}
    return Recipe.parse({"merge": {"method": "linear", "inputs": list(names), "parameters": {"weight": weight}}})


def _repair(source: Recipe, names: Sequence[str], **more: Any) -> Recipe:
    return Recipe.parse({"repair": {"source": source.data, "tasks": list(names), **more}})


def _line(
    module: nn.Module, models: Sequence[Checkpoint | Mapping[str, Tensor]], data: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Return losses and accuracies of the models on the line from one network to another, and the barrier between them."""
    losses, accuracies = (
        list(column) for column in zip(*(networks.scores(module, model, data) for model in models), strict=True)
    )
    return networks.barrier(losses, accuracies)


def _table(found: Mapping[int, list[dict[str, Any]]]) -> str:
    rows = []
    for width, pairs in found.items():
        barriers = [np.array([pair[way]["barrier"] for pair in pairs]) for way in WAYS]
        ends = np.mean([pair["before"]["accuracies"][end] for pair in pairs for end in (0, -1)])
        middle = [np.mean([pair[way]["accuracies"][networks.POINTS // 2] for pair in pairs]) for way in WAYS]
        rows.append(
            [
                str(width),
                f"{barriers[0].mean():.3f} ± {barriers[0].std():.3f}",
                *(
                    f"{some.mean():.3f} ± {some.std():.3f} ({some.mean() / barriers[0].mean():.1%})"
                    for some in barriers[1:]
                ),
                f"{ends:.1%}",
                " / ".join(f"{accuracy:.1%}" for accuracy in middle),
            ]
        )
    columns = [
        "width",
        "barrier",
        *(f"after {label}" for label in list(WAYS.values())[1:]),
        "accuracy of both",
        "of their mean",
    ]
    width, pairs = list(found.items())[-1]
    left = [np.mean([pair[key]["barrier"] for pair in pairs]) for key in ("after", "before")]
    verdict = "reached" if left[0] <= TARGET * left[1] else "missed"
    return (
        f"Loss barriers between perceptrons of two hidden layers, mean and standard deviation over {len(pairs)} pairs, and what matching leaves of "
        f"them. The accuracies of the mean are in the same order: {', '.join(WAYS.values())}.\n\n{table(columns, rows)}\n\n"
        f"Target for width {width}: after weights at most {TARGET:.0%} of the barrier is left ({verdict}). {PAPER}\n\n"
    )


def _table_of_turns(merged: Sequence[Mapping[str, Sequence[float]]]) -> str:
    rows = []
    shares = {}
    for name in merged[0]:
        shares[name] = np.array([np.mean(np.divide(scores[name], scores["experts"])) for scores in merged])
        accuracy = np.mean([scores[name] for scores in merged])
        rows.append([name, f"{accuracy:.1%}", f"{shares[name].mean():.3f} ± {shares[name].std():.3f}"])
    best = shares["matched average, TACT"].mean()
    verdict = "reached" if best >= RETAINED else "missed"
    return (
        f"One network for each way in which digits are turned ({', '.join(TURNS)}), from initialisations of their own; accuracy, and share of the "
        f"experts' accuracy, mean over tasks, and standard deviation over {len(merged)} seeds. A TACT row is a model for each task.\n\n"
        f"{table(['model', 'accuracy', 'of the experts'], rows)}\n\n"
        f"Target: TACT leaves {RETAINED:.0%} ({verdict}). The authors' notebooks, eight tasks: 0.574, REPAIR 0.130, TACT 0.881.\n"
    )


def _table_of_wider(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    names = [*next(iter(found.values()))[0]]
    rows = []
    for name in names:
        cells = []
        for runs in found.values():
            accuracies = np.array([run[name] for run in runs])
            cells.append(f"{accuracies.mean():.1%} ± {accuracies.std():.1%}")
        label = name.replace("both", "both networks, each on its own").replace("pairs", "PLeaS without fitting, width")
        rows.append([label.replace("PLeaS 1", "PLeaS, width 1").replace("PLeaS 2", "PLeaS, width 2"), *cells])
    count = len(next(iter(found.values())))
    return (
        f"Two perceptrons of width {wider_perceptrons.NARROW} from different initialisations in one, whose hidden layers are as wide or wider: accuracy, mean "
        f"and standard deviation over {count} pairs. Both learned the same digits, or one upright and one turned digits; then there is a head for each of the two "
        f"tasks. Units are compared, and matrices fitted, on {networks.EXAMPLES} examples of each task. Without fitting, width 2 is the mean of both logits, or "
        f"both networks side by side.\n\n{table(['model', *found], rows)}\n"
    )


def _table_of_nets(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows, merged = [], []
    for net, pairs in found.items():
        barriers = [np.array([pair[way]["barrier"] for pair in pairs]) for way in list(WAYS)[:3]]
        shown = [
            f"{some.mean():.3f} ± {some.std():.3f}" + (f" ({some.mean() / barriers[0].mean():.1%})" if i else "")
            for i, some in enumerate(barriers)
        ]
        rows.append([net, *shown, f"{np.mean([[p['before']['losses'][end] for end in (0, -1)] for p in pairs]):.3f}"])
        middle = {
            "two networks": np.mean([[p["before"]["accuracies"][end] for end in (0, -1)] for p in pairs], axis=1),
            **{
                label: np.array([p[way]["accuracies"][networks.POINTS // 2] for p in pairs])
                for way, label in (("before", "average"), ("after", "by weights"), ("activations", "by activations"))
            },
            **{name: np.array([p[name]["accuracy"] for p in pairs if name in p]) for name in NODES},
        }
        merged.append(
            [net, *(f"{some.mean():.1%} ± {some.std():.1%}" if len(some) else "" for some in middle.values())]
        )
    count = len(next(iter(found.values())))
    return (
        f"Loss barriers between small networks of transformers, mean and standard deviation over {count} pairs. Models on the line between "
        "ResNets have batch norms with the mean of both statistics, which `repair` corrects.\n\n"
        f"{table(['network', 'barrier', 'after weights', 'after activations', 'loss of both'], rows)}\n\n"
        "Accuracy (of GPT-2: of the next character) of the two networks, of their average as it is, matched, and by nodes whose inputs are matched by "
        f"activations.\n\n{table(['network', *middle], merged)}\n"
    )


def _figure(figures: Mapping[str, Any]) -> Figure:
    """Return the lines between perceptrons, and the accuracy of two in one over its width."""
    found, wider = figures.get("widths", {}), figures.get("wider", {})
    figure = Figure(figsize=(3 * max(len(found), len(wider), 1), 6), layout="constrained")
    above, below = figure.subfigures(2, 1)
    for axes, (width, pairs) in zip(
        np.atleast_1d(above.subplots(1, len(found), sharey=True)) if found else [], found.items(), strict=True
    ):
        for way, label in WAYS.items():
            lines = np.array([pair[way]["losses"] for pair in pairs])
            axes.plot(np.linspace(0, 1, networks.POINTS), lines.mean(0), label=label)
        axes.set(title=f"width {width}", xlabel="share of the second model")
        if axes is above.axes[0]:
            axes.set_ylabel("loss on unseen digits")
            axes.legend()
    for axes, (name, runs) in zip(
        np.atleast_1d(below.subplots(1, len(wider))) if wider else [], wider.items(), strict=True
    ):
        for kind, label in (("PLeaS", "PLeaS"), ("pairs", "without fitting")):
            accuracies = np.array([[run[f"{kind} {width:g}"] for width in wider_perceptrons.WIDTHS] for run in runs])
            axes.errorbar(wider_perceptrons.WIDTHS, accuracies.mean(0), accuracies.std(0), capsize=3, label=label)
        for key, style, label in (("both", ":", "both on their own"), ("ZipIt", "--", "ZipIt")):
            accuracy = float(np.mean([run[key] for run in runs]))
            axes.axhline(accuracy, linestyle=style, color="grey", label=label)
        axes.set(title=f"two in one: {name}", xlabel="width", ylabel="accuracy")
        axes.legend()
    return figure


if __name__ == "__main__":
    main("non_local", __doc__, measure, seeds=SEEDS, parts=PARTS)
