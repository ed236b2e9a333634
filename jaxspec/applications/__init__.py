"""Applications on top of the library: the command `jaxspec`, its demo, and what these need.

The package `command` reads files and prints, `report` draws, `demo` asks a market of really trained
models, which `scenario` and `heads` make from the pictures of `demo_data`. Nothing below this
package imports it.
"""
