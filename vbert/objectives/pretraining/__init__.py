"""Pre-training: masked words and image–text matching over one or several data sets."""
