"""The notebooks, the pages of `docs/` and the glossary as one site of static files, with navigation and search."""
