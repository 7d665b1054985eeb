"""ANSWERS: models that ranks serve on time, by what each request asks for."""
