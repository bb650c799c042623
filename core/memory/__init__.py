"""What models take of a server's memory: asked before they load, measured after, and divided between them."""
