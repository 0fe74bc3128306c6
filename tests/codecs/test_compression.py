"""compress: an artefact with the losses of each expert."""

from contextlib import nullcontext

from evomerge import codecs


def test_losses_are_measured_for_each_expert(lora_pool, tmp_path):
    steps = []

    def progress(step, total):
        steps.append((step, total))
        return nullcontext(lambda done, total=None, note="": None)

    result = codecs.compress(lora_pool, codecs.make("low_rank", {"p": 3}), tmp_path / "out", {}, None, progress)
    assert steps == [("compress", lora_pool.nbytes), ("measure", 4)]
    assert [loss.expert for loss in result.losses] == list(lora_pool.experts)
    assert all(loss.fidelity.error < 1e-5 and not loss.scores for loss in result.losses)  # p = K - 1 is exact
    assert result.figures["rank"] == [2, 2]
    assert result.expert_bytes == sum(e.files[0].stat().st_size for e in lora_pool.experts.values())
