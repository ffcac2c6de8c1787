"""One model on the published evaluations: HHH, harmful or ethical, classes of harm, XSTest.

Command:  cai-jax evaluate --config=experiments/evaluations.py --workdir=evaluations/smollm2
          --config.data=DIR --config.xstest=FILE.csv
Data:     DIR is a checkout of github.com/anthropics/ConstitutionalHarmlessnessPaper; FILE.csv is
          XSTest's xstest_prompts.csv. For the paper's own few-shots, import its constitution:
          cai-jax constitution import --from=DIR/prompts --to=paper.yaml, and give it as
          --config.constitution.
Hardware: as the model needs; 2 CPU cores do for 135M parameters and --config.limit=50.
Time:     not measured.
Expect:   a 135M model near chance everywhere, as the smallest models of the paper's Figure 4.
"""

from common import get_config as common
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every setting with its default."""
    shared = common()
    config = ConfigDict()
    config.seed = 0

    # What is evaluated: a model by name or path, or, with `run`, what the run in that workdir made
    # (`stage` is finetune, ppo or dpo; empty takes the last finished). `system` names it in tables
    # and figures. `preference_model` is the workdir of a run, or of `human-preferences`, whose
    # preference model scores the 438.
    config.model = shared.model
    config.run = ""
    config.stage = ""
    config.system = ""
    config.preference_model = ""
    config.dtype = shared.dtype

    # Which evaluations and modes, with commas between; `limit` takes so many of each, evenly
    # spread, 0 all. `against` is the workdir of another system's evaluation, for paired tests.
    # `hhh_alignment`, the folder of BIG-bench's task of that name, tells which of the 438 are the
    # original 221 (figure 11); empty leaves that out.
    # `questions` are files of other multiple-choice questions, with commas between (plain JSON
    # lines, ARC's or MMLU's), each a result of its own: what training costs in capability.
    config.evaluations = "hhh,harmful_vs_ethical,harm_classes,over_refusal"
    config.modes = "zero_shot,few_shot,chain_of_thought"
    config.limit = 0
    config.against = ""
    config.data = ""
    config.xstest = ""
    config.questions = ""
    config.hhh_alignment = ""
    config.constitution = shared.constitution

    # Chains of thought of each question; 5 in the paper's ensemble.
    config.choices = ConfigDict(
        {
            "few_shots": 5,
            "chains": 5,
            "chain_tokens": 128,
            "chain_temperature": 1.0,
            "shard_size": 64,
        }
    )
    # XSTest: the responses, and the model that judges them; empty is the same model.
    config.responses = ConfigDict(
        {"response_tokens": 128, "temperature": 0.0, "top_p": 1.0, "shard_size": 64}
    )
    config.judge = ""

    config.resamples = 1000
    config.engine = ConfigDict({**shared.engine, "max_length": 4096})
    config.mesh = shared.mesh
    return config
