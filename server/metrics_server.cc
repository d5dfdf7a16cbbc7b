#include "server/metrics_server.h"

#include <CivetServer.h>
#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/status_page.h"

namespace nsa::metadata::server {
namespace {

bool Respond(mg_connection* connection, int status, const char* type, std::string_view body) {
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n"
            "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:\r\nConnection: close\r\n\r\n",
            status, mg_get_response_code_text(connection, status), type, body.size());
  mg_write(connection, body.data(), body.size());
  return true;
}

class MetricsHandler final : public CivetHandler {
 public:
  explicit MetricsHandler(std::vector<const prometheus::Collectable*> sources) : sources_(std::move(sources)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    std::vector<prometheus::MetricFamily> families;
    for (const prometheus::Collectable* source : sources_) {
      std::vector<prometheus::MetricFamily> more = source->Collect();
      families.insert(families.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
    }
    return Respond(connection, 200, "text/plain; version=0.0.4; charset=utf-8",
                   prometheus::TextSerializer().Serialize(families));
  }

 private:
  const std::vector<const prometheus::Collectable*> sources_;
};

// Answers what `body` returns.
class TextHandler final : public CivetHandler {
 public:
  TextHandler(const char* type, std::function<std::string()> body) : type_(type), body_(std::move(body)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override { return Respond(connection, 200, type_, body_()); }

 private:
  const char* const type_;
  const std::function<std::string()> body_;
};

class StateHandler final : public CivetHandler {
 public:
  StateHandler(std::function<bool()> good, const char* yes, const char* no)
      : good_(std::move(good)), yes_(yes), no_(no) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const bool good = good_();
    return Respond(connection, good ? 200 : 503, "text/plain; charset=utf-8", absl::StrCat(good ? yes_ : no_, "\n"));
  }

 private:
  const std::function<bool()> good_;
  const char* const yes_;
  const char* const no_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const Address& address,
                                                                    std::vector<const prometheus::Collectable*> sources,
                                                                    std::function<bool()> ready,
                                                                    std::function<std::string()> status_json) {
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  server->address_ = address;
  // Threads enough that connections which say nothing leave some for scrapes until the timeout ends them.
  const std::vector<std::string> options = {"listening_ports",    address.ToString(),
                                            "num_threads",        "128",
                                            "request_timeout_ms", "1000",
                                            "enable_keep_alive",  "no"};
  try {
    server->server_ = std::make_unique<CivetServer>(options);
  } catch (const CivetException&) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address.ToString(), " for the metrics"));
  }
  server->address_.port = static_cast<uint16_t>(server->server_->getListeningPorts().front());
  server->AddHandler("/metrics$", std::make_unique<MetricsHandler>(std::move(sources)));
  server->AddHandler(
      "/$", std::make_unique<TextHandler>("text/html; charset=utf-8", [] { return std::string(StatusPage()); }));
  server->AddHandler("/status.json$", std::make_unique<TextHandler>("application/json", std::move(status_json)));
  server->AddHandler("/healthz$", std::make_unique<StateHandler>([] { return true; }, "ok", ""));
  server->AddHandler("/readyz$", std::make_unique<StateHandler>(std::move(ready), "ready", "not ready"));
  return server;
}

void MetricsServer::AddHandler(const char* path, std::unique_ptr<CivetHandler> handler) {
  server_->addHandler(path, handler.get());
  handlers_.push_back(std::move(handler));
}

// The server's threads use the handlers.
MetricsServer::~MetricsServer() { server_.reset(); }

}  // namespace nsa::metadata::server
