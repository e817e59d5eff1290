from rflw.cli import run

run()
