"""What a model can do is found out once, and never from weights that are not numbers."""

import torch
from torch import nn

from tests.models import tiny_policy
from workbench import lines, prefixes, trunk
from workbench.trials import Once


def test_only_what_is_certain_is_remembered():
    once, module, asked = Once(), nn.Linear(1, 1), []

    def trial(found, certain):
        asked.append(found)
        return found, certain

    assert once(module, lambda: trial("perhaps", False)) == "perhaps"
    assert once(module, lambda: trial("yes", True)) == "yes"
    assert once(module, lambda: trial("no", True)) == "yes"
    assert asked == ["perhaps", "yes"]
    del module
    assert not once.known, "what a module could do goes with it"


def test_a_model_that_went_astray_is_tried_again(tmp_path):
    policy = tiny_policy(tmp_path / "m")
    embedding = policy.model.get_input_embeddings().weight
    kept = embedding.detach().clone()
    embedding.data.fill_(float("nan"))
    assert trunk.of(policy.model) is None
    assert not lines.kept_apart(policy)
    embedding.data.copy_(kept)
    assert trunk.of(policy.model) is not None
    assert lines.kept_apart(policy)
    embedding.data.fill_(torch.nan)
    assert not prefixes.takes_spans(policy)
    embedding.data.copy_(kept)
    assert prefixes.takes_spans(policy)
