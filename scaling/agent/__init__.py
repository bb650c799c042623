"""A site's side of the hub: reports, applies plans, and goes on alone when the hub is gone."""
