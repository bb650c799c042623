"""Where models come from: hf, file and pypi, each behind the same hook that strangers use."""
