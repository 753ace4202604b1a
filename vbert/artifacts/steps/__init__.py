"""WHAT is made: settings and their fingerprints, steps and the artifacts they make, stages and what these are given."""
