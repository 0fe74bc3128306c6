"""PeftFolder: the changes of a base as a LoRA adapter in the format of PEFT.

Weights of linear layers and embeddings change by factors, biases of linear layers are stored as they are (`bias: all`), and so are all
other tensors, with their modules (`modules_to_save`). Not to be confused with `Adapter`, which reads such a folder.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evomerge import files
from evomerge.checkpoints import hub
from evomerge.checkpoints.factors import Factors
from evomerge.checkpoints.folder import Checkpoint, all_finite
from evomerge.checkpoints.lora import ADAPTER_WEIGHTS, CONFIG
from evomerge.checkpoints.pool import Pool
from evomerge.errors import CheckpointError

_WHOLE = "such a change needs a complete checkpoint"


class PeftFolder:
    """Collects the changes of a pool's base, tensor by tensor, and writes them."""

    def __init__(self, pool: Pool) -> None:
        """Start with no change. Raises `CheckpointError` for a pool whose vocabulary is not the base's."""
        if pool.vocabulary is not None and not pool.vocabulary.is_bases:
            msg = f"the merge has {pool.vocabulary.rows} rows of tokens chosen by `tokenizer`, and an adapter those of its base; {_WHOLE}, or `tokenizer: base`, whose tokens are the base's"
            raise CheckpointError(msg)
        self._pool, self._reading = pool, pool.names.reading
        self._changes: dict[str, Factors] = {}  # by the weight's name in the module
        self._tied = False
        self._biases: dict[str, str] = {}  # names of the base, by names in the module
        self._others: dict[str, str] = {}
        self._complete: dict[str, dict[str, str]] = {}  # by module

    def is_matrix(self, name: str) -> bool:
        """Return whether the base's tensor is the weight of linear layers or embeddings, which factors can change."""
        return all(self._kind(target, name) is not None for target in self._targets(name))

    def add(self, name: str, factors: Factors) -> None:
        """Change the matrix `name` by the product of `factors`."""
        targets = self._targets(name)
        self._changes |= dict.fromkeys(targets, factors)
        self._tied |= len(targets) > 1

    def replace(self, name: str) -> None:
        """Store the complete tensor `name`, which is no matrix."""
        for target in self._targets(name):
            part = self._biases if self._is_bias(target, name) else self._others
            part[target] = name

    def finish(self) -> dict[str, list[str]]:
        """Return the names of the tensors that are stored complete: of `biases`, and by module.

        Raises `CheckpointError` where PEFT cannot replace a module, or where no matrix changes.
        """
        if not self._changes:
            msg = f"no weight of a linear layer or an embedding differs from the base ({self._pool.base.path}), so there is nothing for a LoRA adapter"
            raise CheckpointError(msg)
        self._complete = self._modules()
        biases = {"biases": list(self._biases)} if self._biases else {}
        return biases | {module: list(named) for module, named in self._complete.items()}

    def write(self, out: Path, checkpoint: Checkpoint, extra: Mapping[str, str]) -> None:
        """Write the finished folder `out`, completely or not at all, with the complete tensors of `checkpoint`.

        `extra` maps names of further files to their text.
        """
        tensors: dict[str, torch.Tensor] = {}
        for target, factors in self._changes.items():
            module, turned = target.removesuffix(".weight"), self._kind(target, target) != "linear"
            a, b = (factors.left.T, factors.right.T) if turned else (factors.right, factors.left)
            embedding = self._kind(target, target) == "embedding"
            for letter, factor in (("A", a), ("B", b)):
                key = f"{module}.lora_embedding_{letter}" if embedding else f"{module}.lora_{letter}.weight"
                tensors[f"base_model.model.{key}"] = factor.contiguous()
        for target, name in self._biases.items():
            module = target.removesuffix(".bias")
            layer = f"{module}.base_layer" if f"{module}.weight" in self._changes else module
            tensors[f"base_model.model.{layer}.bias"] = checkpoint.tensor(name)
        for named in self._complete.values():
            for target, name in named.items():
                tensors[f"base_model.model.{target}"] = checkpoint.tensor(name)
        for key, tensor in tensors.items():
            if not all_finite(tensor):
                msg = f"tensor `{key}` of the adapter holds NaN or infinity in {tensor.dtype}, the base's dtype; {_WHOLE}, in another `--dtype`"
                raise CheckpointError(msg)
        config = json.dumps(self._config(list(self._complete)), indent=2, ensure_ascii=False) + "\n"
        out.parent.mkdir(parents=True, exist_ok=True)
        with files.new_folder(out) as new:
            own = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}  # tied ones, and views of files
            save_file(own, new / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            for name, text in {CONFIG: config, **extra}.items():
                (new / name).write_text(text, encoding="utf-8")
            for file in new.iterdir():
                file.chmod(0o644)
                files.sync(file)

    @property
    def elements(self) -> int:
        """Number of elements of all factors."""
        return sum(factors.left.numel() + factors.right.numel() for factors in self._changes.values())

    def _targets(self, name: str) -> list[str]:
        targets = self._pool.names.targets(name)
        if not targets:
            msg = f"`{name}` fills a part of a larger parameter of the model's class, which no LoRA adapter changes; {_WHOLE}"
            raise CheckpointError(msg)
        return targets

    def _kind(self, target: str, name: str) -> str | None:
        """Return `linear`, `conv1d` or `embedding`; None for what is no matrix of such a layer."""
        if self._reading is not None:
            kinds = ("linear", self._reading.linear), ("conv1d", self._reading.transposed)
            known = (*kinds, ("embedding", self._reading.embeddings))
            return next((kind for kind, names in known if target in names), None)
        if not target.endswith(".weight") or len(self._pool.base.info[name].shape) != 2:
            return None
        return "embedding" if self._pool.layout.place(name).kind == "embedding" else "linear"

    def _is_bias(self, target: str, name: str) -> bool:
        """Return whether the tensor is the bias of a linear layer."""
        weights = target.removesuffix("bias") + "weight", name.removesuffix("bias") + "weight"
        return target.endswith(".bias") and weights[1] in self._pool.base.info and self._kind(*weights) is not None

    def _modules(self) -> dict[str, dict[str, str]]:
        """Return the modules that are stored complete, and their tensors: names of the base by names in the module."""
        parents = {target: target.rpartition(".")[0] for target in self._others}
        changed_in = set(parents.values())
        # PEFT replaces all modules whose names end as one that it is told, as `input_layernorm` does with `norm`.
        ends = tuple(changed_in - {""})
        outer = sorted(changed_in | {module for module in self._known_modules() if module.endswith(ends)})
        outer = [module for module in outer if not any(module.startswith(f"{other}.") for other in outer)]
        modules: dict[str, dict[str, str]] = {module: {} for module in outer}
        info = self._pool.base.info
        stored = [(target, name) for name in info for target in self._pool.names.targets(name) or ()]
        for module, inside in modules.items():
            inside |= {target: name for target, name in stored if target.startswith(f"{module}.")}
            changed = [target for target in inside if target in self._changes or target in self._biases]
            if not module or changed:
                inner = [
                    target for target, parent in parents.items() if f"{parent}.".startswith(f"{module}.") or not module
                ]
                what = [*inner, *parents][0]
                msg = f"`{what}` differs from the base and is neither a weight nor a bias of a linear layer or an embedding, nor is its module `{module}` one that PEFT can replace as a whole; {_WHOLE}"
                raise CheckpointError(msg)
        return modules

    def _known_modules(self) -> set[str]:
        """Return the names of the modules with tensors, and of those around them, as far as the class is known."""
        fills = {} if self._reading is None else self._reading.fills
        paths = [target.split(".") for places in fills.values() for target, _ in places]
        return {".".join(path[:end]) for path in paths for end in range(1, len(path))}

    def _config(self, complete: list[str]) -> dict[str, Any]:
        """Return `adapter_config.json`; every scale alpha / r is 1."""
        ranks = {target.removesuffix(".weight"): factors.rank for target, factors in self._changes.items()}
        usual = Counter(ranks.values()).most_common(1)[0][0]
        # PEFT takes the first pattern that matches the end of a name: `^` keeps one from matching longer names.
        patterns = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != usual}
        path = self._pool.base.path.absolute()
        name, _, commit = (hub.name_of(path) or "").partition("@")
        architectures = self._pool.config.get("architectures") or [""]
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if str(architectures[0]).endswith("ForCausalLM") else None,
            "base_model_name_or_path": name or str(path),
            "revision": commit or None,
            "inference_mode": True,
            "r": usual,
            "lora_alpha": usual,
            "lora_dropout": 0.0,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "target_modules": self._short(set(ranks)),
            "modules_to_save": complete or None,
            "bias": "all" if self._biases else "none",
            "fan_in_fan_out": any(self._kind(target, target) == "conv1d" for target in self._changes),
        }
        return config | {"ensure_weight_tying": True} if self._tied else config

    def _short(self, modules: set[str]) -> list[str]:
        """Return the names of `modules`, by their last words where these name no other module."""
        known = self._known_modules()
        others = {module.rpartition(".")[2] for module in known - modules}
        last = {module: module.rpartition(".")[2] for module in modules}
        return sorted({module if not known or last[module] in others else last[module] for module in modules})
