"""Studies of how good the recommendations are, on trained models whose accuracy is measured."""
