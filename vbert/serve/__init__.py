"""A trained model in a browser: one page and one HTTP interface."""
