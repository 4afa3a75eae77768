"""maskgil push: upload a weights folder to the Hugging Face hub."""

from __future__ import annotations


def add(command) -> None:
    sub = command("push", run, "Upload a weights folder or pipeline to the Hugging Face hub, with a model card.")
    sub.add_argument("weights", metavar="WEIGHTS", help="weights folder, pipeline folder or shipped name")
    sub.add_argument("repo", metavar="OWNER/REPO", help="repository on the hub; created if it does not exist")
    sub.add_argument("--private", action="store_true", help="make the new repository private")
    sub.add_argument("--revision", help="branch to commit to; created if it does not exist (default: main)")
    sub.add_argument("--message", default="Upload weights", help="commit message (default: %(default)s)")
    sub.add_argument("--license", help="licence identifier of the hub, e.g. mit (default: that of the converted weights)")


def run(args, rest) -> None:
    """maskgil push"""
    from maskgil_jax.checkpoints.push import push

    options = dict(private=args.private, revision=args.revision, message=args.message, licence=args.license)
    print(f"pushed: {push(args.weights, args.repo, **options)}")
    print(f"load it as hf://{args.repo}" + (f"@{args.revision}" if args.revision else ""))
