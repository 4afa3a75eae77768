"""maskgil plan: memory, FLOPs and estimated time of a run on a machine that is not attached."""

from __future__ import annotations

import contextlib
import dataclasses

from maskgil_jax.commands.run_files import read_run_file


def add(command) -> None:
    sub = command(
        "plan",
        run,
        "Compile the train step of a run file (or sampling) for a TPU that is not attached: memory, FLOPs, estimated time. "
        "Exit code 3: it does not fit into memory.",
        overrides=True,
    )
    sub.add_argument("--config", required=True, metavar="FILE", help="run file, e.g. configs/c2i_b.py")
    sub.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, v6e:1x1 ... (extra [tpu]), or cpu:8")
    sub.add_argument("--decode", type=int, metavar="BATCH", help="plan sampling of a batch of this size instead of training")
    sub.add_argument("--tokenizer", default="VQ-16", help="preset whose codebook and grid are assumed (default: VQ-16)")
    sub.add_argument("--codebook-size", type=int, help="default: the tokenizer preset's")
    sub.add_argument("--num-classes", type=int, default=1000)
    sub.add_argument(
        "--ar", metavar="PRESET", help="with --decode: hybrid decoding after this causal network, e.g. chameleon:7B; all shares"
    )
    sub.add_argument("--int8", action="store_true", help="with --ar chameleon: its layers with 8-bit weights")
    sub.add_argument("--top", type=int, default=0, metavar="N", help="also list the N slowest instructions")
    sub.add_argument(
        "--quick",
        action="store_true",
        help="compile with the lowest effort: faster, but without an estimate by cycles, and memory traffic is overestimated",
    )
    sub.add_argument("--json", metavar="FILE", help="also write the figures to this file")


def run(args, rest) -> int:
    """maskgil plan"""
    from maskgil_jax.config import VQ_PRESETS, choose, require

    config = read_run_file(args.config, rest)
    choose("config.task", config.task, ("generator",))
    tokenizer = VQ_PRESETS[choose("--tokenizer", args.tokenizer, VQ_PRESETS)]
    require(args.decode is None or args.decode >= 1, f"--decode: must be at least 1, got {args.decode}")
    require(args.ar is None or args.decode is not None, "--ar: needs --decode BATCH")
    return plan(args, config, tokenizer)


def plan(args, config, tokenizer) -> int:
    """Compiles the program and prints the figures; returns the exit code."""
    import jax

    if not args.topology.startswith("cpu"):
        jax.config.update("jax_platforms", "cpu")  # compiled for a TPU without using one
    elif (count := args.topology[4:]).isdigit() and int(count) > jax.config.values["jax_num_cpu_devices"]:
        with contextlib.suppress(RuntimeError):  # the backend is already initialised
            jax.config.update("jax_num_cpu_devices", int(count))

    from maskgil_jax.conditioning import ClassConditioner, Conditioner, TextConditioner
    from maskgil_jax.files.atomic import write_json
    from maskgil_jax.networks import count_params
    from maskgil_jax.planning.chips import open_topology
    from maskgil_jax.planning.program import decode_program, network_options, train_program
    from maskgil_jax.planning.report import as_text, make_plan
    from maskgil_jax.runtime.mesh import AXES, make_mesh
    from maskgil_jax.runtime.platform import target_platform
    from maskgil_jax.text_encoders.abstract import abstract_text_encoder
    from maskgil_jax.training.generator_data import encoder_options

    devices, chip = open_topology(args.topology)
    mesh = make_mesh(**config.mesh, devices=devices)
    codes = args.codebook_size or tokenizer.codebook_size
    conditioner: Conditioner = ClassConditioner(tuple(map(str, range(args.num_classes))))
    condition, in_step = f"{args.num_classes} classes", [] if config.data.codes or args.decode else ["images tokenised"]
    if (options := encoder_options(config))["path"]:
        encoder = abstract_text_encoder(mesh=mesh, **options)
        online = not args.decode
        conditioner = TextConditioner(encoder.max_tokens, encoder.width, encoder if online else None, {}, online=online)
        condition = f"captions of {encoder.max_tokens} tokens by {encoder.name}"
        in_step += [f"captions encoded in {options['dtype']}"] if online else []
    cfg = network_options(config, codebook_size=codes, conditioner=conditioner, downsample=tokenizer.downsample)
    with target_platform("tpu" if chip else jax.default_backend()):
        if args.decode:
            planned = dataclasses.replace(tokenizer, codebook_size=codes)
            program = decode_program(config, cfg, conditioner, mesh, planned, args.decode)
            if args.ar:
                return plan_hybrid(args, program, mesh, chip)
        else:
            in_images = None if config.data.codes else dataclasses.replace(tokenizer, codebook_size=codes)
            program = train_program(config, cfg, conditioner, mesh, in_images)
        found = make_plan(program, mesh.size, chip, top=args.top, low_effort=args.quick)
    rows, columns = cfg.grid
    model = config.model
    heading = [
        ("program", f"{'sampling' if args.decode else 'train step'} of {args.config}, {program.images} images a run"),
        ("devices", f"{mesh.size} ({args.topology}), mesh " + " x ".join(f"{a}={mesh.shape[a]}" for a in AXES)),
        (
            "network",
            f"{model.family} {model.preset}, {count_params(cfg) / 1e6:.1f}M parameters, {cfg.dtype}, remat {cfg.remat}",
        ),
        ("assumed", f"{rows}x{columns} codes of {codes} ({args.tokenizer}), {condition}; JAX {jax.__version__}"),
    ]
    if in_step:
        heading.append(("in the step", ", ".join(in_step)))
    print(as_text(found, chip, heading))
    if args.json:
        figures = dataclasses.asdict(found) | {"program": dict(heading), "topology": args.topology, "quick": args.quick}
        if chip:
            figures |= {"chip_memory": chip.memory, "estimates": found.estimates(chip)}
        write_json(args.json, figures)
    return 0 if found.fits else 3


def plan_hybrid(args, masked, mesh, chip) -> int:
    """Plans the causal network beside the masked one and prints the time of every share; the exit code."""
    import jax

    from maskgil_jax.config import CHAMELEON_PRESETS, choose, require
    from maskgil_jax.files.atomic import write_json
    from maskgil_jax.networks import count_params
    from maskgil_jax.planning.hybrid import STEPS, HybridPlan, as_table, causal_program
    from maskgil_jax.planning.report import make_plan

    require(chip is not None, "--ar: needs a topology of TPUs, whose times are estimated")
    family, _, preset = args.ar.partition(":")
    choose("--ar", family, ("chameleon",))
    ar_cfg = CHAMELEON_PRESETS[choose("--ar chameleon", preset, CHAMELEON_PRESETS)]
    cfg, grid = masked.cfg, tuple(masked.cfg.grid)
    ar_cfg = dataclasses.replace(ar_cfg, grid=grid, kernels="int8" if args.int8 else "float")
    require(
        ar_cfg.codebook_size == cfg.codebook_size,
        f"--ar: {args.ar} has {ar_cfg.codebook_size} codes, the run file's network {cfg.codebook_size}; see --codebook-size",
    )
    options = dict(low_effort=args.quick)
    steps, prompt = (
        make_plan(causal_program(ar_cfg, mesh, args.decode, grid, guided=True, steps=count), mesh.size, chip, **options)
        for count in (STEPS, 0)
    )
    found = HybridPlan(steps, prompt, make_plan(masked, mesh.size, chip, **options), grid, whole_rows=True)
    heading = [
        ("program", f"hybrid decoding of {args.decode} images with guidance: {args.ar} before {args.config}"),
        ("devices", f"{mesh.size} ({args.topology}), mesh " + " x ".join(f"{a}={s}" for a, s in mesh.shape.items())),
        (
            "networks",
            f"{count_params(ar_cfg) / 1e6:.0f}M {ar_cfg.dtype}{' with int8 layers' * args.int8}, "
            f"{count_params(cfg) / 1e6:.0f}M {cfg.dtype}; {grid[0]}x{grid[1]} codes; JAX {jax.__version__}",
        ),
    ]
    print(as_table(found, chip, heading))
    if args.json:
        figures = {kind: {str(ratio): s for ratio, s in shares.items()} for kind, shares in found.seconds(chip).items()}
        write_json(args.json, {"program": dict(heading), "topology": args.topology, "peak": found.peak(), "seconds": figures})
    return 0 if found.peak() <= chip.memory else 3
