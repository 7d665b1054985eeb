"""python -m weft.runtime.cli"""

from . import main

main()
