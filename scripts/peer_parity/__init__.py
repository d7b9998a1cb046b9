"""Other people's code and our layers, given the same weights and inputs: what each says, and how far they are apart.

- `comparison`: what a peer was given and said, and the distance of other answers from it
- `drawing`, `float64`: sizes and numbers from a seed; peers in float64
- `transformers_mamba`, `transformers_mamba2`, `fla_rwkv6`, `rwkv_package`: one library and layer each
- `ours`: the same with our layers; the only file that needs statecheck
- `catalogue`: all peers; `checking`: all of them now, at sizes from a seed

`scripts/make_peer_fixtures.py` runs them; `tests/reference` reads what it wrote, and takes `ours` from here.
"""
