"""Table A.4 of the paper: MaskGIL-B at 400 epochs by schedule and number of steps, CFG 2.0. ImageNet 256x256.

maskgil evaluate --config configs/eval_a4.py --weights weights --out runs/a4    # weights/MaskGIL-B
maskgil plot runs/a4
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import eval_table3

STEPS = (4, 8, 16, 32, 64)
# schedule -> (FID, IS) at each number of steps
FIGURES = {
    "root": ((9.4683, 177.5355), (7.1539, 250.1702), (9.1172, 240.3087), (10.3262, 225.1267), (10.8516, 207.2014)),
    "linear": ((10.9076, 162.2468), (6.7640, 239.9988), (8.6355, 233.0458), (9.8178, 216.4662), (10.5585, 204.8842)),
    "square": ((13.4522, 141.6912), (6.1144, 227.3088), (7.9051, 226.6961), (9.2745, 213.4663), (10.0068, 201.7469)),
    "cosine": ((12.8029, 145.7202), (6.3108, 230.7038), (8.2024, 228.5306), (9.5711, 214.4882), (10.1930, 201.3121)),
    "arccos": ((13.2392, 143.9644), (5.9056, 220.2331), (7.3303, 217.5756), (8.3202, 205.5842), (9.5981, 195.7871)),
}
SAME = "Table 3 and A.3 print 5.64 / 229.96 for the same model, arccos, 8 steps, CFG 2.0."


def get_config() -> ConfigDict:
    """`eval_table3.py` with these rows, all of the same weights."""
    config = eval_table3.get_config()
    config.title = "Table A.4: schedules and steps, MaskGIL-B, CFG 2.0"
    config.metrics = ("fid", "is")
    config.decode.guidance = 2.0
    config.rows = tuple(
        dict(
            name=f"{schedule}-{steps}",
            weights="MaskGIL-B",
            decode=dict(schedule=schedule, steps=steps),
            paper={"fid": fid, "is": score},
            note=SAME if (schedule, steps) == ("arccos", 8) else "",
        )
        for schedule, figures in FIGURES.items()
        for steps, (fid, score) in zip(STEPS, figures)
    )
    config.footnotes = ("The text recommends 8 to 16 steps (4.2); here 16 steps are worse than 8 for every schedule.",)
    return config
