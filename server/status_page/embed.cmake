# Writes OUTPUT, a header with the status page in one piece: the files of this folder, with dygraphs, whose files DYGRAPHS_JS and DYGRAPHS_CSS
# are, inside. As numbers: a string literal of that length is more than the standard asks compilers to take.
set(here ${CMAKE_CURRENT_LIST_DIR})
set(page "")
foreach(part ${here}/head.html ${DYGRAPHS_CSS} ${here}/page.css ${here}/body.html ${DYGRAPHS_JS} ${here}/page.js ${here}/end.html)
  file(READ ${part} hex HEX)
  string(APPEND page "${hex}0a")
endforeach()
string(REGEX REPLACE "(..)" "0x\\1," page "${page}")
file(WRITE ${OUTPUT} "// Made by embed.cmake.\n#pragma once\n\nnamespace nsa::metadata::server {\n\n"
  "inline constexpr unsigned char kStatusPage[] = {${page}};\n\n}  // namespace nsa::metadata::server\n")
