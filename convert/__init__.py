"""Published checkpoint → bundle. Needs the `convert` extra; the runtime never imports this."""
