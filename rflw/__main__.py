from rflw.cli import main

main()
