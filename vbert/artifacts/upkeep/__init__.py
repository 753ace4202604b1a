"""AFTERWARDS: reading all of a store again, sweeping, explaining, and handing out."""
