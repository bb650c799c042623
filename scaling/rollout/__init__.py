"""From one revision of a service to the next, with a part of its requests at first, and back where that fails."""
