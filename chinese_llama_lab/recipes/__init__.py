"""Recipes as TOML files: the published ones and the course's own. `training/recipe.py` reads them."""
