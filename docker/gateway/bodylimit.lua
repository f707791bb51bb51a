-- A body that comes without its length (in chunks, or in HTTP/2 frames) is counted while it is passed on, and the request ends where it is
-- longer than GATEWAY_MAX_BODY_MIB. One with a Content-Length is refused by that, before it is sent: haproxy.cfg.
-- Filters in Lua: https://www.arpalert.org/src/haproxy-lua-api/3.0/index.html#filter-class
local limit = tonumber(os.getenv("GATEWAY_MAX_BODY_MIB")) * 1048576
local too_large = string.format('{"type":"error","error":{"message":"The body is larger than %d MiB.","type":"request_too_large","param":null,'
    .. '"code":"request_too_large"}}', limit // 1048576)

local BodyLimit = { id = "body limit", flags = filter.FLT_CFG_FL_HTX }
BodyLimit.__index = BodyLimit

function BodyLimit:new()
    return setmetatable({ seen = 0 }, BodyLimit)
end

function BodyLimit:start_analyze(txn, channel)
    if not channel:is_resp() then
        filter.register_data_filter(self, channel)
    end
end

function BodyLimit:http_headers(txn, message)
    if message.channel:is_resp() == false and txn.f:req_hdr("content-length") then
        filter.unregister_data_filter(self, message.channel)
    end
end

function BodyLimit:http_payload(txn, message)
    -- The end of the chunks counts as one.
    self.seen = self.seen + message:input()
    if self.seen > limit + 1 and not self.over then
        self.over = true
        local reply = txn:reply({ status = 413, body = too_large })
        reply:add_header("content-type", "application/json")
        txn:done(reply)
    end
end

core.register_filter("body-limit", BodyLimit, function(each, arguments) return each end)
