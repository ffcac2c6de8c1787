import subprocess
import sys

import pytest

from cai_jax.evaluation.intervals import Interval
from cai_jax.figures import elo, pm_by_revision, ppo, style


def interval(value, n=24):
    return Interval(value, value - 0.5, value + 0.25, n)


PM = pm_by_revision.PmByRevision(
    {
        "red-team prompts": [interval(-1.0, 48), interval(0.5, 48), interval(0.75, 48)],
        "helpful prompts": [interval(1.0, 32), interval(0.5, 32)],
    },
    "the run's own preference model",
    [0],
)
PPO = ppo.PpoCurve(
    [1, 2],
    [interval(0.0), interval(1.0)],
    [interval(0.0), interval(0.5)],
    [interval(0.0), interval(2.0, 32)],
    [0, 1],
)
ELO = elo.EloPlane(
    [
        elo.EloPoint("initial", Interval(0, 0, 0, 16), Interval(0, 0, 0, 24)),
        elo.EloPoint("RL-CAI", Interval(-20, -80, 45, 16), Interval(104, 110, 208, 24)),
    ],
    anchor="initial",
    judged_by="the run's own preference model",
    seeds=[7],
)
FIGURES = [(pm_by_revision, PM), (ppo, PPO), (elo, ELO)]
NAMES = ["pm_by_revision", "ppo", "elo"]


@pytest.fixture
def captions(monkeypatch):
    kept = []
    original = style.new_figure

    def spy(title, caption, width, height):
        kept.append(caption)
        return original(title, caption, width, height)

    monkeypatch.setattr(style, "new_figure", spy)
    return kept


@pytest.mark.parametrize(("module", "data"), FIGURES, ids=NAMES)
def test_draws_the_same_files_twice(module, data, tmp_path):
    paths = module.draw(data, tmp_path / "a" / "figure.v1")
    assert sorted(p.name for p in paths) == ["figure.v1.csv", "figure.v1.png", "figure.v1.svg"]
    again = module.draw(data, tmp_path / "b" / "figure.v1")
    for one, two in zip(paths, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    png = next(p for p in paths if p.suffix == ".png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 10_000


def test_csv_of_pm_by_revision(tmp_path):
    pm_by_revision.draw(PM, tmp_path / "f")
    assert (tmp_path / "f.csv").read_text().splitlines() == [
        "series,revision,score,low,high,n",
        "red-team prompts,0,-1.0,-1.5,-0.75,48",
        "red-team prompts,1,0.5,0.0,0.75,48",
        "red-team prompts,2,0.75,0.25,1.0,48",
        "helpful prompts,0,1.0,0.5,1.25,32",
        "helpful prompts,1,0.5,0.0,0.75,32",
    ]


def test_csv_of_ppo(tmp_path):
    ppo.draw(PPO, tmp_path / "f")
    assert (tmp_path / "f.csv").read_text().splitlines() == [
        "step,score,score_low,score_high,reward,reward_low,reward_high,kl,kl_low,kl_high,n",
        "1,0.0,-0.5,0.25,0.0,-0.5,0.25,0.0,-0.5,0.25,24",
        "2,1.0,0.5,1.25,0.5,0.0,0.75,2.0,1.5,2.25,24",
    ]


def test_csv_of_elo(tmp_path):
    elo.draw(ELO, tmp_path / "f")
    assert (tmp_path / "f.csv").read_text().splitlines() == [
        "model,helpful_elo,helpful_low,helpful_high,helpful_n,"
        "harmless_elo,harmless_low,harmless_high,harmless_n",
        "initial,0,0,0,16,0,0,0,24",
        "RL-CAI,-20,-80,45,16,104,110,208,24",
    ]


def test_captions_state_n_and_seeds(tmp_path, captions):
    for module, data in FIGURES:
        module.draw(data, tmp_path / "f")
    assert "n = 48 red-team prompts, 32 helpful prompts. Seed: 0." in captions[0]
    assert "n = 24 responses an update, 2 updates. Seeds: 0, 1." in captions[1]
    assert "n = 16 helpful, 24 red-team prompts. Seed: 7." in captions[2]


def test_an_interval_off_its_value_is_drawn_from_the_value():
    assert style.reach([Interval(1.0, 1.5, 2.0, 3), Interval(0.0, -1.0, -0.5, 3)]) == [
        [0.0, 1.0],
        [1.0, 0.0],
    ]


def test_no_pyplot(tmp_path):
    code = (
        "import sys\n"
        "from cai_jax.evaluation.intervals import Interval\n"
        "from cai_jax.figures import pm_by_revision as m\n"
        "data = m.PmByRevision({'x': [Interval(0, 0, 0, 1)]}, 'y', [0])\n"
        f"m.draw(data, {str(tmp_path / 'f')!r})\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n")


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^Cannot write .*file/f.csv: "):
        elo.draw(ELO, tmp_path / "file" / "f")
