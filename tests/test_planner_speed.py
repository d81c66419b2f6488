"""What recipes/benchmarking/planner.py prints of a planner and of SmolDriver's own answer."""

import json

import pytest
import torch

from recipes.benchmarking import planner as speed
from recipes.benchmarking.counts import LimitProbe
from recipes.benchmarking.models import SIZES, make_processor, make_smoldriver


def test_tiny_planner_is_timed_beside_the_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LimitProbe, "probe", lambda self: [one.append(1.0) for one in [*self.products, self.copies]])
    path = tmp_path / "speed.json"
    threads = torch.get_num_threads()
    speed.main(["--sizes", "tiny", "--device", "cpu", "--dtype", "float32", "--repeats", "1", "--json", str(path)])
    torch.set_num_threads(threads)
    planner, answer = json.loads(path.read_text())["rows"]
    assert (planner["what"], answer["what"]) == ("planner", "answer")  # its 9 tokens are the full budget: one answer
    assert 0 < planner["pictures_seconds"] < planner["seconds"] and 0 < planner["macs"] < answer["macs"]
    assert answer["times_the_planner"] == pytest.approx(answer["seconds"] / planner["seconds"])
    assert planner["folder"] == {"weights": planner["weights"], "language_model_weights": 0}
    printed = capsys.readouterr().out
    assert f"0 of {planner['weights']:,} weights in its folder are of a language model" in printed
    assert "| tiny, float32 | planner | 9 |" in printed


def test_a_language_model_in_the_folder_would_be_seen():
    _, config, _ = make_processor(SIZES["tiny"])
    found = speed.weights_of_folder(make_smoldriver(config, "cpu", torch.float32))
    text = config.text_config
    assert (
        found.language_model_weights > 2 * text.hidden_size * text.vocab_size
        and found.weights > found.language_model_weights
    )
