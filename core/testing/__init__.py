"""The conformance kit: what every plugin promises, as tests that run over its own models. See docs/tutorial-plugin.md."""
