"""The comparison of dictionaries with autoencoders: coders, page, and that nothing is measured twice."""

from pathlib import Path

import dictionary_study
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mlsm.files import read_json


def problem() -> tuple[Tensor, Tensor]:
    """Atoms (16, 40) and states (200, 16) of norm 1 that are sums of three of them."""
    generator = torch.Generator().manual_seed(0)
    atoms_DK = F.normalize(torch.randn(16, 40, generator=generator), dim=0)
    used = torch.rand(200, 40, generator=generator).topk(3, dim=1).indices
    codes_NK = torch.zeros(200, 40).scatter(1, used, 0.2 + torch.rand(200, 3, generator=generator))
    return atoms_DK, F.normalize(codes_NK @ atoms_DK.mT, dim=1)


def test_refitted_weights_are_those_of_least_squares() -> None:
    atoms_DK, states_ND = problem()
    _, codes_NK = dictionary_study.lasso_coder(atoms_DK, 0.1)(states_ND)
    rebuilt_ND, refitted_NK = dictionary_study.lasso_coder(atoms_DK, 0.1, refits=True)(states_ND)
    assert ((refitted_NK > 0) <= (codes_NK > 0)).all()
    for state_D, code_K, refitted_K in zip(states_ND, codes_NK, refitted_NK, strict=True):
        used = code_K.nonzero().flatten()
        solved = torch.linalg.lstsq(atoms_DK[:, used].double(), state_D.double()[:, None]).solution[:, 0]
        assert refitted_K[used].tolist() == pytest.approx(solved.clamp_min(0).tolist(), abs=1e-3)
    shrunk_ND = codes_NK @ atoms_DK.mT
    assert (rebuilt_ND - states_ND).square().sum() < (shrunk_ND - states_ND).square().sum()
    nothing_NK = dictionary_study.refitted(torch.zeros(3, 40), atoms_DK, states_ND[:3])
    assert torch.equal(nothing_NK, torch.zeros(3, 40))


@pytest.mark.parametrize("num_nonzeros", [1.5, 2.5, 4.0])
def test_a_lambda_is_found_for_a_number_of_nonzeros(num_nonzeros: float) -> None:
    atoms_DK, states_ND = problem()
    lam = dictionary_study.lambda_for(atoms_DK, states_ND, num_nonzeros)
    _, codes_NK = dictionary_study.lasso_coder(atoms_DK, lam)(states_ND)
    assert float((codes_NK > 0).sum(1).float().mean()) == pytest.approx(num_nonzeros, rel=0.05)


def test_an_offset_is_taken_away_and_added_again() -> None:
    atoms_DK, states_ND = problem()
    offset_D = torch.linspace(-1, 1, 16)
    plain_ND, plain_NK = dictionary_study.lasso_coder(atoms_DK, 0.05)(states_ND)
    moved_ND, moved_NK = dictionary_study.lasso_coder(atoms_DK, 0.05, offset_D)(states_ND + offset_D)
    assert torch.allclose(moved_NK, plain_NK, atol=1e-3)
    assert torch.allclose(moved_ND, plain_ND + offset_D, atol=1e-3)


class Autoencoder:
    """An encoder that keeps the k largest products with its decoder's rows."""

    def __init__(self, states_ND: Tensor, k: int, settings: dictionary_study.Settings) -> None:
        generator = torch.Generator().manual_seed(0)
        self.k = k
        self.W_dec = F.normalize(torch.randn(settings.k, states_ND.shape[1], generator=generator), dim=1)
        self.b_dec = states_ND.mean(0)

    def encode(self, states_ND: Tensor) -> Tensor:
        values, at = ((states_ND - self.b_dec) @ self.W_dec.mT).relu().topk(self.k, dim=1)
        return torch.zeros(len(states_ND), len(self.W_dec)).scatter(1, at, values)

    def decode(self, codes_NK: Tensor) -> Tensor:
        return codes_NK @ self.W_dec + self.b_dec


def test_the_command_writes_a_page_and_measures_nothing_twice(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dictionary_study, "has_saelens", lambda: False)
    command = [f"--teacher={teacher}", "--layer=1,2", "--lam=0.03,0.3", "--k=20", "--num-words=50"]
    command.append(f"--output={tmp_path}")
    dictionary_study.main(command)
    assert "no autoencoders: the package is missing" in capsys.readouterr().err
    page = (tmp_path / "dictionaries.md").read_text()
    assert page.count("| dictionary |") == page.count("| dictionary, refitted |") == 4
    assert "amortisation gap" not in page
    monkeypatch.setattr(dictionary_study, "has_saelens", lambda: True)
    monkeypatch.setattr(dictionary_study, "train_autoencoder", Autoencoder)
    dictionary_study.main(command)
    page = (tmp_path / "dictionaries.md").read_text()
    for title in ("autoencoder", "its decoder, lasso", "its decoder, lasso refitted", "dictionary"):
        assert page.count(f"| {title} |") == 4
    assert "The amortisation gap is" in page
    assert (tmp_path / "dictionaries.png").read_bytes().startswith(b"\x89PNG")
    rows = read_json(teacher / "dictionaries.json")["rows"]["2 0.03"]
    assert rows["autoencoder"]["nonzeros"] <= round(rows["dictionary"]["nonzeros"])
    assert rows["its decoder, lasso"]["nonzeros"] == pytest.approx(rows["autoencoder"]["nonzeros"], rel=0.2)
    for name in ("dictionary", "its decoder, lasso"):
        refitted = rows["dictionary, refitted" if name == "dictionary" else f"{name} refitted"]
        assert refitted["explained_variance"] >= rows[name]["explained_variance"]
    before = (teacher / "dictionaries.json").read_bytes()
    monkeypatch.setattr(dictionary_study, "measure", None)  # nothing is left to measure
    dictionary_study.main(command)
    assert (teacher / "dictionaries.json").read_bytes() == before


def test_settings_are_checked(teacher: Path) -> None:
    for flags, message in (
        (["--layer=1,x"], "--layer takes numbers with commas between them, got '1,x'"),
        (["--lam=0.1;0.2"], "--lam takes numbers"),
        (["--num-words=0"], "num_words must be above 0"),
        (["--layer=9"], "layers 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dictionary_study.main([f"--teacher={teacher}", *flags])
