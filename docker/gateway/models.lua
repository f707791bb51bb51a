-- What HAProxy has no words for where there are several models. The functions that are registered here are called in haproxy.cfg:
-- https://www.arpalert.org/src/haproxy-lua-api/3.0/index.html

local function answer(applet, status, body)
    applet:set_status(status)
    applet:add_header("content-type", "application/json")
    applet:add_header("content-length", tostring(#body))
    applet:start_response()
    applet:send(body)
end

-- GET /v1/models: what an engine of each model lists, one list after the other. A model that does not answer now is not in it.
core.register_service("models", "http", function(applet)
    local found, answered = {}, false
    for backend in os.getenv("GATEWAY_BACKENDS"):gmatch("%S+") do
        local reply = core.httpclient():get({ url = "http://127.0.0.1:8404/models/" .. backend, timeout = 5000 })
        local list = reply and reply.status == 200 and reply.body:match('^%s*{.-"data"%s*:%s*%[(.*)%]%s*}%s*$')
        answered = answered or list
        if list and list:match("%S") then
            found[#found + 1] = list
        end
    end
    if answered then
        answer(applet, 200, '{"object":"list","data":[' .. table.concat(found, ",") .. "]}")
    else
        applet:add_header("retry-after", "5")
        answer(applet, 503, '{"type":"error","error":{"message":"No engine answers. Try again later; the operator sees the reason with: make status",'
            .. '"type":"overloaded_error","param":null,"code":"engine_unavailable"}}')
    end
end)

-- The field `model` of a form (multipart/form-data, as audio is sent), from the beginning of a body; "" where it is not in it.
core.register_converters("form_model", function(body)
    return body:match('name="?model"?\r\n\r\n([^\r\n]+)') or ""
end)
