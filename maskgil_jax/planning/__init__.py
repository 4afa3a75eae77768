"""Ahead-of-time compilation for TPU topologies: estimates memory, FLOPs,
communication and step time (`maskgil plan`)."""
