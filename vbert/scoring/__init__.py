"""Official figures from anyone's files: predictions beside annotations, in the formats that benchmarks publish.

One module a family reads both, checks them and applies the functions of `vbert.metrics`. No torch, no store, no recipe.
"""
