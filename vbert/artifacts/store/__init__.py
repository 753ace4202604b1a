"""WHERE it lies: one store over a small protocol of files, on a disk and in a bucket."""
