"""What a program will need on a machine that is not here: memory, FLOPs, traffic, time. What `maskgil plan` prints."""
