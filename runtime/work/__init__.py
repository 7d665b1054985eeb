"""WHO computes what: tasks and the steps made of them."""
