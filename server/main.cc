// nsa-metadata-server.

#include "server/command_line.h"
#include "server/run.h"

int main(int argc, char** argv) {
  nsa::metadata::server::ServeAndExit(nsa::metadata::server::OptionsFromCommandLine(argc, argv));
}
