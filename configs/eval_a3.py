"""Table A.3 of the paper: MaskGIL by size, epochs and CFG. ImageNet 256x256, 8 steps.

maskgil evaluate --config configs/eval_a3.py --weights weights --out runs/a3

Weights: one sub-folder for each size and number of epochs, e.g. MaskGIL-B-400ep.
"""

from ml_collections import ConfigDict

from maskgil_jax.configs import eval_table3

COLUMNS = [(size, guidance) for size in ("B", "L", "XL", "XXL") for guidance in (3.0, 2.5, 2.0, 1.5)][:-1]
# epochs -> FID, then IS, for each column; at 400 epochs XXL was not trained
FID = {
    50: "9.8001 9.7923 10.1693 11.4326 8.1032 7.3123 6.7532 6.9289 5.9404 5.4523 5.4149 6.4069 4.9994 4.6997 5.0216",
    100: "8.1221 7.8057 7.7422 8.2393 6.8974 5.8711 5.3028 5.2657 4.7785 4.2401 4.2148 5.2318 3.8788 4.0727 4.8170",
    200: "7.4975 6.4922 6.1397 6.8546 6.2931 5.7252 4.8876 4.5048 4.2346 3.9977 4.1228 5.5923 3.9649 3.8788 4.4784",
    300: "6.9971 6.3837 5.6994 5.6713 6.1342 5.1874 4.5432 4.3718 4.1886 3.9442 4.0512 4.9251 3.8365 3.7199 4.2015",
    400: "7.0901 6.2576 5.6450 5.6713 5.4711 4.6372 4.0185 4.0854 4.0931 3.9031 4.0522 4.7214",
}
IS = {
    50: "169.3604 152.9462 136.0035 115.6833 248.7714 229.2365 204.0812 172.9692 259.9695 235.1068 204.2972 172.1452 "
    "277.6597 251.9433 218.3809",
    100: "213.7423 194.7384 174.4664 150.8941 287.1859 265.8999 235.5590 203.3373 299.0290 271.2699 237.7044 198.0010 "
    "285.9541 255.0303 220.0994",
    200: "244.6256 222.4675 201.6035 169.0343 327.0787 303.9240 275.0859 235.0050 314.0859 281.0844 262.0203 205.5776 "
    "305.9541 274.0724 240.9620",
    300: "271.4360 250.5148 226.8228 194.3450 331.4310 306.8823 272.2563 236.6083 321.1712 291.0879 259.2443 220.4716 "
    "306.6679 282.4760 253.4782",
    400: "274.9196 255.3847 229.9646 199.2374 336.8414 312.2809 281.1118 239.8479 326.2475 296.2475 269.8136 237.9921",
}
NOTES = {
    "MaskGIL-B-200ep-cfg3.0": "Table A.2 prints 6.9971 / 244.6256 for the same run; here 6.9971 is printed for 300 epochs.",
    "MaskGIL-B-300ep-cfg1.5": "The same FID, 5.6713, is printed at 300 and at 400 epochs, with another IS.",
    "MaskGIL-B-400ep-cfg1.5": "The same FID, 5.6713, is printed at 300 and at 400 epochs, with another IS.",
    "MaskGIL-B-400ep-cfg2.0": "Table A.4 prints 5.9056 / 220.2331 for the same model, arccos, 8 steps.",
    "MaskGIL-XXL-300ep-cfg2.5": "Table 3 prints 3.71 / 303.47 for XXL at CFG 2.5.",
}


def get_config() -> ConfigDict:
    """`eval_table3.py` with these rows."""
    config = eval_table3.get_config()
    config.title = "Table A.3: size, epochs and CFG"
    config.metrics = ("fid", "is")
    rows = []
    for epochs in FID:
        for (size, guidance), fid, score in zip(COLUMNS, FID[epochs].split(), IS[epochs].split()):
            folder = f"MaskGIL-{size}-{epochs}ep"
            name = f"{folder}-cfg{guidance}"
            paper = {"fid": float(fid), "is": float(score)}
            rows.append(dict(name=name, weights=folder, decode=dict(guidance=guidance), paper=paper, note=NOTES.get(name, "")))
    config.rows = tuple(rows)
    config.footnotes = ()
    return config
