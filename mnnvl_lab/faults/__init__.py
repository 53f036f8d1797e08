"""Faults on purpose: ranks that stay away, die or send rubbish, to see that each is named and survived.

Everything here is a function that ranks run, or data about one. The tests, `tools.soak` and the notebooks use the same.
"""
