"""``python -m reasonrec`` is the ``reasonrec`` command."""

from reasonrec.cli import main

main()
