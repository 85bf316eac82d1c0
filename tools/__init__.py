"""Programs for those who work on the project; a package with this file, so that none of its name hides it."""
